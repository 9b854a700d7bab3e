"""What lies beside the weights: figures with intervals, plots, predictions, the run's record and the model card."""

import argparse
import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template

import numpy as np

from finetuning_model.evaluation.metrics import (
    Estimate,
    bootstrap_weights,
    estimate,
    expected_calibration_error,
    label_figures,
    paired_difference,
    spearman,
)
from finetuning_model.labelled_rows import Split
from router_data import LABELS, SUPERIOR, LabelledQuestion, write_rows
from router_model import RouterSettings, calibrated

ROOT = Path(__file__).resolve().parents[1]
ROUTER = "this router"
VERSIONS_OF = ("torch", "transformers", "accelerate", "scikit-learn", "numpy", "onnxruntime")


def judge(scores: dict[str, np.ndarray], targets: np.ndarray, threshold: float) -> dict:
    """Every metric of the router and of each baseline on the same rows, and the paired differences, with intervals.

    Args:
        scores: name -> superior scores, shape (n,); the router's under ROUTER. Scores above 1 are only ranked.
        targets: labels, shape (n,), 1 is superior.
        threshold: superior from this probability on.
    """
    draws = bootstrap_weights(len(targets))
    labels, routed = targets >= 0.5, scores[ROUTER] >= threshold
    figures: dict[str, dict] = {}
    differences: dict[str, dict] = {}
    for name, values in scores.items():
        metrics = label_figures(targets, threshold)
        if values.max() > 1:
            metrics = {key: metrics[key] for key in ("AUROC", "average precision")}
        figures[name] = {key: vars(estimate(metric, values, draws)) for key, metric in metrics.items()}
        if name != ROUTER:
            differences[name] = {
                key: vars(paired_difference(metric, scores[ROUTER], values, draws)) for key, metric in metrics.items()
            }
    confusion = {
        label: {route: int(((labels == want) & (routed == went)).sum()) for went, route in enumerate(LABELS)}
        for want, label in enumerate(LABELS)
    }
    return {
        "rows": len(targets),
        "threshold": threshold,
        "figures": figures,
        "router_minus_baseline": differences,
        "confusion_matrix": confusion,
    }


def judge_questions(questions: list[LabelledQuestion], scores: dict[str, np.ndarray], threshold: float) -> dict:
    """`judge` on MT-Bench questions, and Spearman's correlation of the scores with 1 - the human preference ratio."""
    report = judge(scores, np.array([float(q.label == SUPERIOR) for q in questions]), threshold)
    draws = bootstrap_weights(len(questions))
    metric = spearman(1 - np.array([q.inferior_ratio for q in questions]))
    report["spearman_with_human_preference"] = {
        name: vars(estimate(metric, values, draws)) for name, values in scores.items() if np.ptp(values) > 0
    }
    return report


def calibration(logits: np.ndarray, shift: float, labels: np.ndarray, temperature: float) -> dict:
    """Expected calibration error on rows that chose neither temperature nor shift, before and after them.

    Args:
        logits: with the shift, shape (n, 2).
        shift: what calibration added to the superior logit.
        labels: 1 is superior, shape (n,).
        temperature: what the logits are divided by.
    """
    draws = bootstrap_weights(len(labels))
    metric = expected_calibration_error(labels)
    return {
        "temperature": temperature,
        "shift": shift,
        "expected_calibration_error_before": vars(estimate(metric, uncalibrated(logits, shift), draws)),
        "expected_calibration_error_after": vars(estimate(metric, calibrated(logits, temperature), draws)),
    }


def uncalibrated(logits: np.ndarray, shift: float) -> np.ndarray:
    """Superior probabilities, shape (n,), as the model gave them before it was calibrated."""
    return calibrated(logits - [0.0, shift], 1.0)


def markdown_table(report: dict) -> str:
    """The figures of `judge` as a Markdown table, a row per router."""
    columns = list(report["figures"][ROUTER])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, figures in report["figures"].items():
        cells = [str(Estimate(**figures[column])) if column in figures else "–" for column in columns]
        lines.append(f"| {f'**{name}**' if name == ROUTER else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_predictions(path: Path, split: Split, scores: np.ndarray) -> None:
    """One row a prompt: its label and grade, and what the router says of it."""
    write_rows(
        path,
        [
            {**row.model_dump(), "target": row.target, "superior_probability": float(score)}
            for row, score in zip(split.rows, scores, strict=True)
        ],
    )


def draw_plots(folder: Path, test: Split, logits: np.ndarray, settings: RouterSettings, log: dict) -> None:
    """Plots of the test part and of the training, as PNG."""
    from finetuning_model.evaluation import plots

    scores = calibrated(logits, settings.temperature)
    labels = test.labels
    plots.reliability(folder / "reliability.png", test.labels, uncalibrated(logits, log["shift"]), scores, "test rows")
    groups = {label: labels == i for i, label in enumerate(LABELS)}
    plots.score_histogram(folder / "scores.png", scores, groups, settings.threshold, "test rows")
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
        plots.accuracy_by_category(
            folder / "accuracy_by_category.png", categories, (scores >= settings.threshold) == (labels > 0), labels
        )


def run_record(args: argparse.Namespace, data: dict) -> dict:
    """What it takes to make this run again: arguments, code, data, versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "arguments": vars(args),
        "git_commit": commit or None,
        "train_files": data["files"],
        "data_sha256": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in data["files"]},
        "rows": {key: value for key, value in data.items() if key != "files"},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_model_card(folder: Path, record: dict, metrics: dict, settings: RouterSettings) -> None:
    """README.md, filled from what was measured."""
    questions = metrics.get("questions")
    scaling = metrics["calibration"]
    spread = metrics.get("seeds")
    about_seeds = f"Of {len(spread)} seeds the one with the lowest validation loss was kept." if spread else ""
    template = Template((Path(__file__).parent / "model_card_template.md").read_text(encoding="utf-8"))
    card = template.substitute(
        name=folder.name.removesuffix(".unfinished"),
        base=settings.base_model,
        files=", ".join(f"`{path}`" for path in record["train_files"]),
        train_rows=record["rows"]["train"],
        validation_rows=record["rows"]["validation"],
        test_rows=record["rows"]["test"],
        max_length=settings.max_length,
        temperature=f"{settings.temperature:.3f}",
        shift=f"{scaling['shift']:+.3f}",
        threshold=settings.threshold,
        thresholds="\n".join(f"| {key} | {value:.3f} |" for key, value in settings.thresholds.items()),
        test_table=markdown_table(metrics["test"]),
        question_table=markdown_table(questions) if questions else "Not judged on them: there was no questions file.",
        question_rows=questions["rows"] if questions else 0,
        ece_before=Estimate(**scaling["expected_calibration_error_before"]),
        ece_after=Estimate(**scaling["expected_calibration_error_after"]),
        seeds=about_seeds,
        command=f"python3 inference/run_gradio_model.py --model_save_dir {folder.with_suffix('')} "
        f"--hf_model_name {settings.base_model}",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
