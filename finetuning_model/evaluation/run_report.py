"""What a run leaves beside the weights: figures with intervals, plots, predictions and the run's record."""

import argparse
import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning_model.evaluation import plots
from finetuning_model.evaluation.baselines import PARENT, ROUTER, Embed, baseline_scores
from finetuning_model.evaluation.figures import compare_all, confusion
from finetuning_model.evaluation.markdown import show
from finetuning_model.evaluation.metrics import (
    as_json,
    bootstrap_weights,
    estimate,
    expected_calibration_error,
    label_figures,
    spearman,
    uncalibrated,
)
from finetuning_model.evaluation.model_card import figures_table, write_model_card
from finetuning_model.evaluation.robustness import judge_frames
from finetuning_model.evaluation.tradeoff import qualities, tradeoff_table
from finetuning_model.frames import Frames
from finetuning_model.labelled_rows import TrainingData
from router_data import (
    LABELS,
    PROJECT_ROOT,
    SUPERIOR,
    LabelledPrompt,
    LabelledQuestion,
    label_of,
    now,
    write_json,
    write_rows,
)
from router_model import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    TRADEOFF_FILE,
    VALIDATION_FILE,
    Router,
)

if TYPE_CHECKING:
    from finetuning_model.training import Recipe, TrainedModel

EMBEDDED_ROWS = 3_000  # for the baselines; to embed 10,000 would take a fifth of the demo, and evaluate_router.py does
FRAMED_TEST_PROMPTS = 30  # requests, each in every frame
VERSIONS_OF = ("torch", "transformers", "accelerate", "scikit-learn", "numpy", "onnxruntime")


def judge_checkpoint(
    router: Router,
    test_scores: np.ndarray,
    data: TrainingData,
    embed: Embed,
    judging_frames: Path,
    runs: "list[TrainedModel]",
    parent: Router | None = None,
) -> dict:
    """metrics.json: the router beside its baselines on the test part and on the questions, calibration, frames, seeds.

    Args:
        test_scores: the router's of the test part, shape (n,).
        embed: the frozen encoder, for the baselines on embeddings.
        judging_frames: a frames file that was not trained on.
        runs: one a seed; the one with the lowest validation loss is the router.
        parent: the router that training went on from; it is judged as a baseline.
    """
    threshold, n = router.settings.threshold, len(data.test.rows)
    questions = [question.prompt for question in data.questions]
    prompts = data.test.prompts + questions
    baselines = baseline_scores(
        data.train.prompts, data.train.soft_labels, prompts, embed, runs[0].seed, most_embedded=EMBEDDED_ROWS
    )
    scores = {ROUTER: np.concatenate([test_scores, router.score(questions)]), **baselines}
    if parent:
        scores[PARENT] = parent.score(prompts)
    best = min(runs, key=lambda run: run.log["validation_loss"])
    on_test = {name: values[:n] for name, values in scores.items()}
    frames = Frames.read(judging_frames)
    metrics: dict = {
        "test": judge(on_test, data.test.labels, threshold),
        "calibration": calibration(on_test[ROUTER], data.test.labels, router, best.log["logit_bias"]),
        "frames": judge_frames(
            router.score, data.test.prompts, data.test.labels, frames, threshold, most=FRAMED_TEST_PROMPTS
        ),
    }
    if questions:
        on_questions = {name: values[n:] for name, values in scores.items()}
        metrics["questions"] = judge_questions(data.questions, on_questions, threshold)
    if len(runs) > 1:
        metrics["seeds"] = [{"seed": run.seed, "validation_loss": run.log["validation_loss"]} for run in runs]
    return as_json(metrics)


def judge(scores: dict[str, np.ndarray], y: np.ndarray, threshold: float) -> dict:
    """Every metric of the router and of each baseline on the same rows, and the paired differences, with intervals.

    Args:
        scores: name -> superior scores, shape (n,); the router's first, under ROUTER. Scores above 1 are only ranked.
        y: labels, shape (n,), 1 is superior.
        threshold: superior from this probability on.
    """
    compared = compare_all(label_figures(y, threshold), scores, bootstrap_weights(len(y)))

    def by_scorer(kind: str) -> dict[str, dict]:
        return {
            name: {metric: entries[name][kind] for metric, entries in compared.items() if name in entries}
            for name in scores
        }

    return {
        "rows": len(y),
        "threshold": threshold,
        "figures": by_scorer("figure"),
        "router_minus_baseline": {name: values for name, values in by_scorer("difference").items() if name != ROUTER},
        "confusion_matrix": confusion(y, scores[ROUTER], threshold),
    }


def judge_questions(questions: list[LabelledQuestion], scores: dict[str, np.ndarray], threshold: float) -> dict:
    """`judge` on MT-Bench questions, and Spearman's correlation of the scores with 1 - the human preference ratio."""
    report = judge(scores, np.array([float(q.label == SUPERIOR) for q in questions]), threshold)
    draws = bootstrap_weights(len(questions))
    metric = spearman(1 - np.array([q.inferior_ratio for q in questions]))
    report["spearman_with_human_preference"] = {
        name: estimate(metric, values, draws) for name, values in scores.items() if np.ptp(values) > 0
    }
    return report


def calibration(scores: np.ndarray, labels: np.ndarray, router: Router, logit_bias: float) -> dict:
    """Expected calibration error on rows that chose neither temperature nor bias, before and after them.

    Args:
        scores: the router's, shape (n,).
        labels: 1 is superior, shape (n,).
        logit_bias: what calibration added to the superior logit.
    """
    draws, temperature = bootstrap_weights(len(labels)), router.settings.temperature
    metric = expected_calibration_error(labels)
    return {
        "temperature": temperature,
        "logit_bias": logit_bias,
        "expected_calibration_error_before": estimate(metric, uncalibrated(scores, temperature, logit_bias), draws),
        "expected_calibration_error_after": estimate(metric, scores, draws),
    }


def write_predictions(
    folder: Path, router: Router, data: TrainingData, validation_scores: np.ndarray, test_scores: np.ndarray
) -> None:
    """The validation and the test rows with the router's answer."""
    threshold = router.settings.threshold
    write_rows(folder / VALIDATION_FILE, with_router_answer(data.validation.rows, validation_scores, threshold))
    write_rows(folder / PREDICTIONS_FILE, with_router_answer(data.test.rows, test_scores, threshold))


def write_tradeoff(folder: Path, rows: list[LabelledPrompt], scores: np.ndarray) -> None:
    """tradeoff.json: what each threshold brings on the validation rows."""
    inferior, superior, source = qualities(rows)
    table = tradeoff_table(scores, inferior, superior, f"{len(rows):,} validation prompts, quality {source}")
    write_json(folder / TRADEOFF_FILE, table.model_dump())


def with_router_answer(rows: list[LabelledPrompt], scores: np.ndarray, threshold: float) -> list[dict]:
    """Labelled rows, untouched, each with `router_score`, `router_label` and `threshold`."""
    return [
        {
            **row.model_dump(exclude_unset=True),
            "router_score": float(score),
            "router_label": label_of(score, threshold),
            "threshold": threshold,
        }
        for row, score in zip(rows, scores, strict=True)
    ]


def write_evidence(folder: Path, record: dict, metrics: dict, runs: "list[TrainedModel]") -> None:
    """metrics.json, run.json and the model card, which shows the plots."""
    record["training"] = [run.log for run in runs]
    write_json(folder / METRICS_FILE, metrics)
    write_json(folder / RUN_FILE, record)
    write_model_card(folder)


def draw_plots(folder: Path, router: Router, scores: np.ndarray, data: TrainingData, log: dict) -> None:
    """Plots of the test part and of the training, as PNG."""
    test, threshold = data.test, router.settings.threshold
    before = uncalibrated(scores, router.settings.temperature, log["logit_bias"])
    plots.reliability(folder / "reliability.png", test.labels, before, scores, "test rows")
    groups: dict[str, np.ndarray] = {label: test.labels == i for i, label in enumerate(LABELS)}
    plots.score_histogram(folder / "scores.png", scores, groups, threshold, "test rows")
    evaluated = [entry for entry in log["history"] if "eval_loss" in entry]
    trained = [entry for entry in log["history"] if "loss" in entry]
    plots.training_curve(
        folder / "training.png",
        [entry["epoch"] for entry in evaluated],
        [entry["eval_loss"] for entry in evaluated],
        [entry["epoch"] for entry in trained],
        [entry["loss"] for entry in trained],
    )
    categories = [getattr(row, "category", None) or "none" for row in test.rows]
    if len(set(categories)) > 1:
        correct = (scores >= threshold) == (test.labels > 0)
        plots.accuracy_by_category(folder / "accuracy_by_category.png", categories, correct, test.labels)


def run_record(args: argparse.Namespace, recipe: "Recipe", data: TrainingData) -> dict:
    """run.json, what it takes to make this run again: the recipe, the flags, code, data and versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    return {
        "recipe": vars(recipe),
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "git_commit": commit.stdout.strip() or None,
        "train_files": data.files,
        "data_sha256": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in data.files},
        "rows": data.counts,
        "rehearsal": args.limit is not None or args.max_steps > 0,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        "started_at": now(),
    }


def summary(metrics: dict) -> str:
    """The figures that are printed at the end."""
    lines = [figures_table(metrics["test"])]
    frames = metrics["frames"]
    lines.append(
        f"in {frames['frames']} frames that were not trained on: {show(frames['kept'], percent=True)} of the decisions "
        f"are those on the bare request (worst frame {frames['worst']['kept']['value']:.1%})"
    )
    rho = metrics.get("questions", {}).get("spearman_with_human_preference", {}).get(ROUTER)
    if rho:  # there is none where every question scores alike
        rows = metrics["questions"]["rows"]
        lines.append(f"on {rows} MT-Bench questions: Spearman with the human preference {show(rho)}")
    return "\n".join(lines)
