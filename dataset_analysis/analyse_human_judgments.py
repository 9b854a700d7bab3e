"""Stage 1: how often do people prefer the answers of inferior models, question by question of MT-Bench?

Reads   lmsys/mt_bench_human_judgments (from the hub, or a local copy): the votes between two tiers of models
Writes  into the output folder
        mt_bench_questions_labelled.jsonl   the questions, ranked and labelled
        labelling_prompt.txt                a rubric with the clearest questions, for the labelling model of stage 2
        mt_bench_analysis.md                the report; its plots are in mt_bench_analysis/

Example:
    python3 dataset_analysis/analyse_human_judgments.py
    python3 dataset_analysis/analyse_human_judgments.py --dataset ./mt_bench_human_judgments --threshold 0.2
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from router_data import (
    DATASETS_DIR,
    EVEN_GAIN,
    INFERIOR,
    LABELLING_PROMPT_FILE,
    LABELS,
    QUESTIONS_FILE,
    SAMPLE_FILE,
    SUPERIOR,
    InputError,
    LabelledQuestion,
    now,
    program_parser,
    run_script,
    write_rows,
    write_text_atomically,
)

if TYPE_CHECKING:
    import pandas as pd

    from dataset_analysis.report import Analysis

DATASET = "lmsys/mt_bench_human_judgments"
SUPERIOR_MODELS = ["gpt-4", "gpt-3.5-turbo", "claude-v1"]
INFERIOR_MODELS = ["vicuna-13b-v1.2", "alpaca-13b", "llama-13b"]
TEMPLATE = Path(__file__).with_name("labelling_prompt_template.txt")
REPORT_NAME = "mt_bench_analysis.md"
EXAMPLE_PAIRS = 6  # categories in the labelling prompt, one question of each label from each
MIN_LABEL_CONFIDENCE = 0.9  # a question shown there has its label with at least this probability


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--dataset", default=DATASET,
        help="hub id; or a folder with human.parquet and, if at hand, gpt4_pair.parquet and question.jsonl; or a file "
        "of human votes (default: %(default)s)")
    add("--superior_models", nargs="+", default=SUPERIOR_MODELS, metavar="MODEL",
        help=f"the expensive tier (default: {' '.join(SUPERIOR_MODELS)})")
    add("--inferior_models", nargs="+", default=INFERIOR_MODELS, metavar="MODEL",
        help=f"the cheap tier (default: {' '.join(INFERIOR_MODELS)})")
    add("--threshold", type=float, metavar="RATIO",
        help=f"inferior ratio, 0..1, from which a question is {INFERIOR} (default: the median of the questions)")
    add("--output_dir", type=Path, default=DATASETS_DIR, help="folder to write to (default: ./%(default)s)")
    # fmt: on
    args = parser.parse_args(argv)
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise InputError(f"--threshold {args.threshold:g} is not between 0 and 1")
    return args


def rank_questions(votes: "pd.DataFrame", texts: "pd.DataFrame") -> "pd.DataFrame":
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


def label_questions(questions: "pd.DataFrame", threshold: float | None) -> tuple["pd.DataFrame", float]:
    """Add label and label_confidence: how likely the true ratio is on the label's side of the threshold.

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
    return questions.assign(label=label, label_confidence=np.where(below, under, 1 - under)), chosen


def choose_examples(questions: "pd.DataFrame", threshold: float) -> list[int]:
    """The question_ids to show to the labelling model: one of each label from each of at most six categories.

    A question qualifies if its label is certain (MIN_LABEL_CONFIDENCE), the first-turn votes alone give the same label
    (a router sees the first turn only) and, for INFERIOR, ties are at most half of its votes: a tie may mean that all
    models failed. Each category offers its most certain question of either label; the categories with the most certain
    pairs are taken, so the subject says nothing about the label. The order of the two alternates.
    """
    first_turn_agrees = (questions["first_turn_ratio"] < threshold) == (questions["label"] == SUPERIOR)
    few_ties = (questions["ties"] <= questions["votes"] / 2) | (questions["label"] == SUPERIOR)
    clear = questions[(questions["label_confidence"] >= MIN_LABEL_CONFIDENCE) & first_turn_agrees & few_ties]
    clear = clear.sort_values("label_confidence", ascending=False, kind="stable")
    pairs = []
    for category in sorted(set(clear["category"])):
        found = [clear[(clear["category"] == category) & (clear["label"] == label)] for label in LABELS]
        if all(len(candidates) for candidates in found):
            confidence = min(candidates["label_confidence"].iloc[0] for candidates in found)
            pairs.append((confidence, [int(candidates.index[0]) for candidates in found]))
    pairs.sort(key=lambda pair: -pair[0])
    return [number for i, (_, pair) in enumerate(pairs[:EXAMPLE_PAIRS]) for number in (pair if i % 2 else pair[::-1])]


def labelling_prompt(analysis: "Analysis", superior_models: list[str], inferior_models: list[str]) -> str:
    """The template, filled with the questions shown, in their order, and how people voted on them."""

    def example(number: int) -> str:
        question = analysis.questions.loc[number]
        votes = (
            f"{question['superior_wins']} for the stronger models, {question['ties']} ties, "
            f"{question['inferior_wins']} for the weaker ones; the difference is "
            f"{'large' if question['label'] == SUPERIOR else 'small'}"
        )
        return f"<example>\n<prompt>\n{question['prompt']}\n</prompt>\n<votes>{votes}</votes>\n</example>"

    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        superior_models=", ".join(superior_models),
        inferior_models=", ".join(inferior_models),
        even_gain=EVEN_GAIN,
        examples="\n\n".join(map(example, analysis.few_shot_ids)) or "(none: the votes leave no question clear enough)",
    )


def labelled_rows(analysis: "Analysis") -> list[LabelledQuestion]:
    """The questions as rows of contract 1, the hardest first."""
    questions, labelled_at = analysis.questions, now()
    columns = [name for name in LabelledQuestion.model_fields if name in questions]
    return [
        LabelledQuestion(
            **{name: fields[name] for name in columns},
            question_id=number,
            source=DATASET,
            source_id=str(number),
            labelled_by="human",
            labelled_at=labelled_at,
            in_labelling_prompt=number in analysis.few_shot_ids,
        )
        for number, fields in zip(questions.index.tolist(), questions.to_dict("records"), strict=True)
    ]


def analyse(args: argparse.Namespace) -> "Analysis":
    """Read the judgments, keep the votes between the tiers, rank and label the questions, choose the clearest.

    Raises:
        InputError: the data or the tiers don't allow it; says why.
    """
    from dataset_analysis.read_judgments import (
        check_tiers,
        gpt4_votes,
        question_texts,
        read_judgments,
        votes_between_tiers,
    )
    from dataset_analysis.report import Analysis

    judgments = read_judgments(args.dataset)
    check_tiers(judgments.human, args.superior_models, args.inferior_models)
    votes = votes_between_tiers(judgments.human, args.superior_models, args.inferior_models)
    if votes.empty:
        raise InputError("no vote is between --superior_models and --inferior_models; choose models that met")
    texts = question_texts(judgments)
    questions, threshold = label_questions(rank_questions(votes, texts), args.threshold)
    return Analysis(
        source=judgments.read_from,
        human_votes=len(judgments.human),
        votes=votes,
        gpt4_votes=gpt4_votes(judgments, args.superior_models, args.inferior_models),
        questions=questions,
        threshold=threshold,
        threshold_is_median=args.threshold is None,
        few_shot_ids=choose_examples(questions, threshold),
        questions_without_votes=len(texts) - len(questions),
    )


def describe(analysis: "Analysis") -> str:
    """What was found, in lines to print."""
    questions, counts = analysis.questions, analysis.questions["label"].value_counts()
    lines = [
        f"read {analysis.source}: {len(analysis.votes):,} of {analysis.human_votes:,} human votes are between the "
        "tiers",
        f"{len(questions)} questions, mean inferior ratio {questions['inferior_ratio'].mean():.3f}; threshold "
        f"{analysis.threshold:.3f}: {counts[SUPERIOR]} {SUPERIOR}, {counts[INFERIOR]} {INFERIOR}",
    ]
    if counts.min() < 0.3 * len(questions):
        lines.append(
            f"note: few questions are {counts.idxmin()}; choose another --threshold to judge a router on both labels"
        )
    if not analysis.few_shot_ids:
        lines.append("note: no category has a clear question of both labels; the labelling prompt shows no examples")
    return "\n".join(lines)


def next_commands(output_dir: Path) -> str:
    """What to run now; names the files where stage 2 wouldn't look for them."""
    label = "python3 create_dataset/label_prompts.py --limit 100 --dry_run"
    if output_dir.resolve() != DATASETS_DIR.resolve():
        label += f" --labelling_prompt {shlex.quote(str(output_dir / LABELLING_PROMPT_FILE.name))}"
        label += f" --questions_file {shlex.quote(str(output_dir / QUESTIONS_FILE.name))}"
    train = f"python3 finetuning_model/finetune_bert.py --train_files {SAMPLE_FILE}"
    return f"with no key, train on the sample: {train}\nnext: {label}"


def main(argv: Sequence[str] | None = None) -> None:
    """Rank and label the questions, write them, the labelling prompt and the report."""
    args = parse_args(argv)

    # 1. Read the votes, rank and label the questions.
    analysis = analyse(args)
    print(describe(analysis))

    # 2. Write the questions, the labelling prompt and the report.
    from dataset_analysis.report import write_report

    questions_file = args.output_dir / QUESTIONS_FILE.name
    prompt_file = args.output_dir / LABELLING_PROMPT_FILE.name
    report = args.output_dir / REPORT_NAME
    prompt = labelling_prompt(analysis, args.superior_models, args.inferior_models)
    try:
        write_rows(questions_file, labelled_rows(analysis))
        write_text_atomically(prompt_file, prompt)
        write_report(report, analysis)
    except OSError as error:
        raise InputError(f"cannot write to --output_dir {args.output_dir}: {error.strerror}") from error

    # 3. What was written, and what comes next.
    shown = len(analysis.few_shot_ids)
    print(f"wrote {questions_file} ({len(analysis.questions)} questions, {shown} of them in the labelling prompt)")
    print(f"wrote {prompt_file} ({len(prompt):,} characters)")
    print(f"wrote {report}, with plots in {report.with_suffix('')}/")
    print(next_commands(args.output_dir))


if __name__ == "__main__":
    run_script(main)
