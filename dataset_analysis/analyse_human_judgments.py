"""Stage 1: how often do people prefer the answers of inferior models, question by question of MT-Bench?

Reads lmsys/mt_bench_human_judgments (from the hub, or a local copy) and counts the votes between two tiers of models.
Writes into the output folder
    mt_bench_questions_labelled.jsonl   the questions, ranked and labelled
    labelling_prompt.txt                a rubric with the clearest questions, for the labelling model of stage 2
    mt_bench_analysis.md                the report; its plots are in mt_bench_analysis/

Example:
    python3 dataset_analysis/analyse_human_judgments.py
    python3 dataset_analysis/analyse_human_judgments.py --dataset ./mt_bench_human_judgments --threshold 0.2
"""

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from router_data import INFERIOR, LABELS, SUPERIOR, InputError, LabelledQuestion, run_script, write_rows

DATASET = "lmsys/mt_bench_human_judgments"
SUPERIOR_MODELS = ["gpt-4", "gpt-3.5-turbo", "claude-v1"]
INFERIOR_MODELS = ["vicuna-13b-v1.2", "alpaca-13b", "llama-13b"]
OUTPUT_DIR = Path("./final-datasets")
TEMPLATE = Path(__file__).with_name("labelling_prompt_template.txt")
SAMPLE = "final-datasets/sample/router_dataset_sample.jsonl"
EXAMPLE_PAIRS = 6  # categories in the labelling prompt, one question of each label from each
SURE = 0.9  # a question shown there has its label with at least this probability


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default=DATASET, help="hub id; or a folder with human.parquet and, if at hand, gpt4_pair.parquet "
        "and question.jsonl; or a file of human votes (default: %(default)s)")  # fmt: skip
    add("--superior_models", nargs="+", default=SUPERIOR_MODELS, metavar="MODEL",
        help=f"the expensive tier (default: {' '.join(SUPERIOR_MODELS)})")  # fmt: skip
    add("--inferior_models", nargs="+", default=INFERIOR_MODELS, metavar="MODEL",
        help=f"the cheap tier (default: {' '.join(INFERIOR_MODELS)})")  # fmt: skip
    add("--threshold", type=float, metavar="RATIO", help="inferior ratio, 0 to 1, from which a question is "
        f"{INFERIOR} (default: the median of the questions)")  # fmt: skip
    add("--output_dir", type=Path, default=OUTPUT_DIR, help="folder to write to (default: ./%(default)s)")
    args = parser.parse_args(argv)
    if args.threshold is not None and not 0 < args.threshold < 1:
        parser.error("--threshold must lie between 0 and 1")
    return args


def rank_questions(votes, texts):
    """The questions that have votes between the tiers, ranked by how hard they are for the inferior models.

    Of questions with the same ratio, those rank as harder whose votes shrink it less towards a half (there are more
    of them), then those with fewer outright wins of the inferior models.

    Args:
        votes: `read_judgments.votes_between_tiers`.
        texts: `read_judgments.question_texts`.

    Returns:
        The fields of LabelledQuestion that don't depend on the threshold, and votes, points (inferior wins and half
        the ties) and first_turn_ratio (NaN without a vote on the first turn); by question_id, the hardest first.
    """
    from dataset_analysis.vote_statistics import beta_interval

    by_question = votes.groupby("question_id")["score"]
    questions = texts.join(by_question.agg(votes="size", points="sum"), how="inner")
    questions["prompt"] = [turns[0] for turns in questions["turns"]]
    for column, score in (("superior_wins", 0), ("ties", 0.5), ("inferior_wins", 1)):
        questions[column] = by_question.agg(lambda scores, score=score: int((scores == score).sum()))
    points, count = questions["points"].to_numpy(), questions["votes"].to_numpy()
    questions["inferior_ratio"] = points / count
    questions["inferior_ratio_low"], questions["inferior_ratio_high"] = beta_interval(points, count)
    questions["first_turn_ratio"] = votes[votes["turn"] == 1].groupby("question_id")["score"].mean()
    questions["shrunken"] = (points + 0.5) / (count + 1)
    questions = questions.rename_axis("question_id").sort_values(
        ["inferior_ratio", "shrunken", "inferior_wins", "question_id"]
    )
    questions["difficulty_rank"] = range(1, len(questions) + 1)
    return questions.drop(columns="shrunken")


def label_questions(questions, threshold: float | None):
    """Add the columns label and sure: how likely the true ratio is on the label's side of the threshold.

    Args:
        questions: `rank_questions`.
        threshold: INFERIOR from here on; None is the median ratio.

    Returns:
        The questions and the threshold.

    Raises:
        InputError: every question would get the same label.
    """
    import numpy as np

    from dataset_analysis.vote_statistics import probability_below

    ratio = questions["inferior_ratio"]
    chosen = float(ratio.median()) if threshold is None else threshold
    below = ratio < chosen
    if below.all() or not below.any():
        raise InputError(
            f"the threshold {chosen:.3f} gives every question the same label; the ratios lie between {ratio.min():.3f} "
            f"and {ratio.max():.3f}: choose --threshold between them"
        )
    under = probability_below(chosen, questions["points"].to_numpy(), questions["votes"].to_numpy())
    label = np.where(below, SUPERIOR, INFERIOR)
    return questions.assign(label=label, sure=np.where(below, under, 1 - under)), chosen


def choose_examples(questions, threshold: float) -> list[int]:
    """The question_ids to show to the labelling model: one of each label from each of at most six categories.

    A question qualifies if its label is sure (SURE), the first-turn votes alone give the same label (a router sees
    the first turn only) and, for INFERIOR, ties are at most half of its votes: a tie may mean that all models failed.
    Each category offers its surest question of either label; the categories with the surest pairs are taken, so the
    subject says nothing about the label. The order of the two alternates.
    """
    first_turn_agrees = (questions["first_turn_ratio"] < threshold) == (questions["label"] == SUPERIOR)
    few_ties = (questions["ties"] <= questions["votes"] / 2) | (questions["label"] == SUPERIOR)
    clear = questions[(questions["sure"] >= SURE) & first_turn_agrees & few_ties]
    surest = clear.sort_values("sure", ascending=False, kind="stable").reset_index()
    surest = surest.drop_duplicates(["category", "label"]).pivot(index="category", columns="label")
    surest = surest.reindex(
        columns=[(column, label) for column in ("question_id", "sure") for label in LABELS]
    ).dropna()
    pairs = surest.loc[surest["sure"].min(axis=1).sort_values(ascending=False, kind="stable").index[:EXAMPLE_PAIRS]]
    pairs = pairs["question_id"].astype(int).to_numpy()
    return [int(number) for i, pair in enumerate(pairs) for number in (pair if i % 2 else pair[::-1])]


def labelling_prompt(questions, shown: list[int], superior_models: list[str], inferior_models: list[str]) -> str:
    """The template, filled with the questions shown, in their order."""

    def example(question) -> str:
        answer = json.dumps({"label": question["label"]})
        return f"<example>\n<prompt>\n{question['prompt']}\n</prompt>\n{answer}\n</example>"

    examples = "\n\n".join(example(questions.loc[number]) for number in shown)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        superior_models=", ".join(superior_models),
        inferior_models=", ".join(inferior_models),
        examples=examples or "(none: the votes leave no question clear enough)",
    )


def labelled_rows(questions, shown: list[int]) -> list[LabelledQuestion]:
    """The questions as rows of contract, the hardest first."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns = [name for name in LabelledQuestion.model_fields if name in questions]
    return [
        LabelledQuestion(
            **{name: fields[name] for name in columns},
            question_id=number,
            source=DATASET,
            source_id=str(number),
            labelled_by="human",
            labelled_at=now,
            in_labelling_prompt=number in shown,
        )
        for number, fields in zip(questions.index.tolist(), questions.to_dict("records"), strict=True)
    ]


def make_folder(path: Path) -> None:
    """Make the folder where there is none.

    Raises:
        InputError: it can't be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to --output_dir {path}: {error.strerror}") from error


def next_commands(output_dir: Path) -> str:
    """What to run now; names the files where stage 2 wouldn't look for them."""
    label = "python3 create_dataset/label_prompts.py --limit 100 --dry_run"
    if output_dir.resolve() != OUTPUT_DIR.resolve():
        label += f" --labelling_prompt {shlex.quote(str(output_dir / 'labelling_prompt.txt'))}"
        label += f" --questions_file {shlex.quote(str(output_dir / 'mt_bench_questions_labelled.jsonl'))}"
    train = f"python3 finetuning_model/finetune_bert.py --train_files {SAMPLE}"
    return f"next, label prompts:  {label}\nor train on the sample: {train}"


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    from dataset_analysis.read_judgments import (
        check_tiers,
        gpt4_votes,
        question_texts,
        read_judgments,
        votes_between_tiers,
    )
    from dataset_analysis.report import write_report

    # 1. Read the judgments and keep the votes between the tiers.
    judgments = read_judgments(args.dataset)
    check_tiers(judgments.human, args.superior_models, args.inferior_models)
    votes = votes_between_tiers(judgments.human, args.superior_models, args.inferior_models)
    if votes.empty:
        raise InputError("no vote is between --superior_models and --inferior_models; choose models that met")
    print(f"read {judgments.read_from}: {len(votes):,} of {len(judgments.human):,} human votes are between the tiers")

    # 2. Rank and label the questions, choose the clearest.
    texts = question_texts(judgments)
    questions, threshold = label_questions(rank_questions(votes, texts), args.threshold)
    shown = choose_examples(questions, threshold)
    counts = questions["label"].value_counts()
    print(
        f"{len(questions)} questions, mean inferior ratio {questions['inferior_ratio'].mean():.3f}; threshold "
        f"{threshold:.3f}: {counts[SUPERIOR]} {SUPERIOR}, {counts[INFERIOR]} {INFERIOR}"
    )
    if counts.min() < 0.3 * len(questions):
        print(f"note: few questions are {counts.idxmin()}; choose another --threshold to judge a router on both labels")
    if not shown:
        print("note: no category has a clear question of both labels; the labelling prompt shows no examples")

    # 3. Write the questions, the labelling prompt and the report.
    make_folder(args.output_dir)
    questions_file = args.output_dir / "mt_bench_questions_labelled.jsonl"
    write_rows(questions_file, labelled_rows(questions, shown))
    prompt_file = args.output_dir / "labelling_prompt.txt"
    prompt = labelling_prompt(questions, shown, args.superior_models, args.inferior_models)
    prompt_file.write_text(prompt, encoding="utf-8")
    report = args.output_dir / "mt_bench_analysis.md"
    write_report(
        report,
        source=judgments.read_from,
        all_votes=len(judgments.human),
        votes=votes,
        gpt4_votes=gpt4_votes(judgments, args.superior_models, args.inferior_models),
        questions=questions,
        threshold=threshold,
        given_threshold=args.threshold is not None,
        shown=shown,
        left_out=len(texts) - len(questions),
    )

    # 4. What was written, and what comes next.
    print(f"wrote {questions_file} ({len(questions)} questions, {len(shown)} of them in the labelling prompt)")
    print(f"wrote {prompt_file} ({len(prompt):,} characters)")
    print(f"wrote {report}, with plots in {report.with_suffix('')}/")
    print(next_commands(args.output_dir))
    return 0


if __name__ == "__main__":
    run_script(main)
