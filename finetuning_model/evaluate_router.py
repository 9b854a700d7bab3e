"""Judge a checkpoint: on outcomes of two models, on labelled prompts, on MT-Bench, on probes and on changed wordings.

Reads   a checkpoint's folder; outcomes (prompt, weak_score, strong_score); labelled prompts; the labelled MT-Bench
        questions; the rows the checkpoint was trained on, for the baselines. With neither --outcomes nor --labelled:
        the test part that the checkpoint's training left out.
Writes  evaluation.md, evaluation.json and plots in <checkpoint>/evaluation/

Every figure stands beside those of simple baselines, with 95% bootstrap intervals over prompts and paired differences.

Example:
    python3 finetuning_model/evaluate_router.py --outcomes my_outcomes.jsonl --price_superior 10 --price_inferior 0.6
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from finetuning_model.evaluation.baselines import (
    baseline_scores,
    category_gap_of_other_half,
    category_mean,
    frozen_encoder,
)
from finetuning_model.evaluation.eval_sets import (
    QUESTIONS_FILE,
    EvaluationSet,
    mark_near_duplicates,
    probe_set,
    read_sets,
    training_rows,
)
from finetuning_model.evaluation.figures import as_json, judge_probes, judge_robustness, judge_set
from finetuning_model.evaluation.report import KNOWS_THE_TEST, markdown, summary
from finetuning_model.evaluation.run_report import ROUTER
from router_data import LABELS, InputError, LabelledPrompt, run_script
from router_model import Router, newest_checkpoint

CHUNK = 256  # prompts scored between two moves of the progress bar


def scorer(router: Router) -> Callable[[Sequence[str]], np.ndarray]:
    """`router.score` with a progress bar."""
    from tqdm import tqdm

    def score(prompts: Sequence[str]) -> np.ndarray:
        starts = range(0, len(prompts), CHUNK)
        chunks = [router.score(prompts[i : i + CHUNK]) for i in tqdm(starts, "scoring", disable=len(prompts) <= CHUNK)]
        return np.concatenate(chunks)

    return score


def encoder_of(args: argparse.Namespace, router: Router, run: dict, remarks: list[str]):
    """The frozen encoder that the router was fine-tuned from, or None and a remark."""
    name = args.hf_model_name or run.get("arguments", {}).get("hf_model_name") or router.settings.base_model
    try:
        if name is None:
            raise ValueError("the checkpoint names no base model")
        return frozen_encoder(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        remarks.append(f"no baselines on embeddings: {name} can't be had ({reason}); name it with --hf_model_name")
        return None


def score_sets(sets: list[EvaluationSet], score, train: list[LabelledPrompt], embed, seed: int) -> None:
    """Fill each set's `scores`: the router's first, then every baseline's, all trained on the same rows."""
    prompts = [prompt for each in sets for prompt in each.prompts]
    targets = np.array([row.soft_label for row in train])
    baselines = baseline_scores([row.prompt for row in train], targets, prompts, embed, seed)
    scores = {ROUTER: score(prompts), **baselines}
    categories = [getattr(row, "category", None) for row in train]
    start = 0
    for each in sets:
        end = start + len(each.prompts)
        each.scores = {name: values[start:end] for name, values in scores.items()}
        start = end
        if set(categories) & set(each.categories):
            each.scores["category's mean"] = category_mean(categories, targets, each.categories)
        if each.weak is not None and len(set(each.categories)) > 1:
            gap = category_gap_of_other_half(each.categories, each.gain, seed)
            each.scores[KNOWS_THE_TEST] = gap


def draw_plots(folder: Path, each: EvaluationSet, router: Router, prices: tuple[float, float] | None) -> list[str]:
    """The set's plots; returns their names."""
    from finetuning_model.evaluation import plots

    scores, threshold, name = each.scores[ROUTER], router.settings.threshold, each.name
    target = next(iter(each.targets.values()))
    y = (target >= 0.5).astype(float)
    drawn = []

    def path(kind: str) -> Path:
        drawn.append(f"{name}_{kind}.png")
        return folder / drawn[-1]

    if each.weak is not None:
        if each.gain.sum() > 0:
            baselines = {key: values for key, values in each.scores.items() if key != ROUTER}
            plots.cost_quality(path("cost_quality"), scores, baselines, each.gain, prices, name)
        fails, gains = each.weak < 0.5, each.gain > 0
        groups = {"the inferior model suffices": ~fails, "only the superior one does better": fails & gains}
        groups["both fail alike"] = fails & ~gains
    else:
        groups = {label: y == i for i, label in enumerate(LABELS)}
    plots.score_histogram(path("scores"), scores, groups, threshold, name)
    plots.reliability(path("reliability"), target, uncalibrated(scores, router.settings.temperature), scores, name)
    if len(set(each.categories)) > 1:
        plots.accuracy_by_category(path("categories"), each.categories, (scores >= threshold) == (y > 0), y, name)
    return drawn


def uncalibrated(scores: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities before temperature scaling."""
    inside = np.clip(scores, 1e-12, 1 - 1e-12)
    return 1 / (1 + np.exp(-temperature * np.log(inside / (1 - inside))))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_save_dir", type=Path, help="the checkpoint's folder (default: the newest in ./models)")
    add("--outcomes", nargs="+", default=[], metavar="FILE", help="JSONL of prompt, weak_score, strong_score; or globs")
    add("--labelled", nargs="+", default=[], metavar="FILE", help="JSONL of labelled prompts; files or globs")
    add("--questions_file", help=f"labelled MT-Bench questions (default: {QUESTIONS_FILE}, where it exists)")
    add(
        "--train_files", nargs="+", metavar="FILE", help="what the baselines learn from (default: the checkpoint's own)"
    )
    add("--output_dir", type=Path, help="where the report goes (default: <checkpoint>/evaluation)")
    add(
        "--hf_model_name", help="hub id or folder of the frozen encoder, and of a missing tokenizer (default: its base)"
    )
    add("--threshold", type=float, help="superior from this probability on (default: the checkpoint's, 0..1)")
    add("--price_superior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the superior model alone")
    add("--price_inferior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the inferior model alone")
    add("--limit", type=int, help="judge on at most this many prompts of each file, for a rehearsal (default: all)")
    add("--seed", type=int, default=0, help="of the random router, of --limit and of the typos (default: 0)")
    args = parser.parse_args(argv)
    if (args.price_superior is None) != (args.price_inferior is None):
        parser.error("--price_superior and --price_inferior go together")
    if args.price_superior is not None and not args.price_superior > args.price_inferior >= 0:
        parser.error("--price_superior must be more than --price_inferior, and neither below 0")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    # 1. Read the checkpoint's evidence, the test sets and the training rows.
    args = parse_args(argv)
    model_save_dir = args.model_save_dir or newest_checkpoint()
    sets = read_sets(args, model_save_dir)
    run_file = model_save_dir / "run.json"
    run = json.loads(run_file.read_text(encoding="utf-8")) if run_file.exists() else {}
    train, remarks = training_rows(args, model_save_dir, run)
    prices = None if args.price_superior is None else (args.price_superior, args.price_inferior)

    # 2. Load the router and score everything.
    router = Router.load(model_save_dir, args.hf_model_name)
    if not sets:
        raise InputError(f"{model_save_dir} has no test part of its own; name files with --outcomes or --labelled")
    if args.threshold is not None:
        router.settings.threshold = args.threshold
    threshold = router.settings.threshold
    print(
        f"judging {model_save_dir} on {sum(len(each.prompts) for each in sets):,} prompts of {len(sets)} sets",
        flush=True,
    )
    embed = encoder_of(args, router, run, remarks) if train else None
    score = scorer(router)
    probes = probe_set()
    score_sets([*sets, probes], score, train, embed, args.seed)
    if train:
        mark_near_duplicates([*sets, probes], train)

    # 3. Judge.
    output_dir = args.output_dir or model_save_dir / "evaluation"
    output_dir.mkdir(parents=True, exist_ok=True)
    evaluation = {
        "model_save_dir": str(model_save_dir),
        "base_model": router.settings.base_model,
        "backend": router.backend,
        "threshold": threshold,
        "temperature": router.settings.temperature,
        "trained_for": trained_for(train),
        "train_rows": len(train),
        "train_files": args.train_files or run.get("train_files") or [],
        "prices": prices,
        "seed": args.seed,
        "limit": args.limit,
        "remarks": remarks,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sets": [
            judge_set(each, threshold, prices) | {"plots": draw_plots(output_dir, each, router, prices)}
            for each in sets
        ],
        "probes": judge_probes(probes),
        "robustness": judge_robustness(score, sets, threshold, args.seed),
    }

    # 4. Write the report; the Markdown is made from the JSON alone.
    evaluation = as_json(evaluation)
    text = json.dumps(evaluation, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (output_dir / "evaluation.json").write_text(text, encoding="utf-8")
    (output_dir / "evaluation.md").write_text(markdown(evaluation), encoding="utf-8")
    print(summary(evaluation))
    print(f"the whole report: {output_dir / 'evaluation.md'}")


def trained_for(train: list[LabelledPrompt]) -> str:
    """Which question the router was trained to answer."""
    questions = {
        "outcome_gain": "the superior model gains (outcomes)",
        "outcome_fail": "the inferior model fails (outcomes)",
    }
    asked = {questions.get(row.labelled_by, "the inferior model would clearly fall short (labels)") for row in train}
    return "; ".join(sorted(asked)) or "the superior model is needed, by rows that are not known here"


if __name__ == "__main__":
    run_script(main)
