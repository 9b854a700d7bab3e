"""What lies beside the weights: figures with intervals, plots, predictions, the run's record and the model card."""

import argparse
import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from finetuning_model.evaluation import plots
from finetuning_model.evaluation.baselines import Embed, baseline_scores
from finetuning_model.evaluation.metrics import (
    Estimate,
    bootstrap_weights,
    estimate,
    expected_calibration_error,
    label_figures,
    paired_difference,
    spearman,
)
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
    write_text_atomically,
)
from router_model import (
    CARD_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    TRADEOFF_FILE,
    VALIDATION_FILE,
    Router,
    calibrated,
)

if TYPE_CHECKING:
    from finetuning_model.training import Recipe, TrainedModel

ROUTER = "this router"
VERSIONS_OF = ("torch", "transformers", "accelerate", "scikit-learn", "numpy", "onnxruntime")
CARD_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def judge_checkpoint(
    router: Router, data: TrainingData, embed: Embed, judging_frames: Path, runs: "list[TrainedModel]"
) -> dict:
    """metrics.json: the router beside its baselines on the test part and on the questions, calibration, frames, seeds.

    Args:
        embed: the frozen encoder, for the baselines on embeddings.
        judging_frames: a frames file that was not trained on.
        runs: one a seed; the one with the lowest validation loss is the router.
    """
    threshold, n = router.settings.threshold, len(data.test.rows)
    questions = [question.prompt for question in data.questions]
    prompts = data.test.prompts + questions
    baselines = baseline_scores(data.train.prompts, data.train.soft_labels, prompts, embed, runs[0].seed)
    logits = router.logits(prompts)
    scores = {ROUTER: calibrated(logits, router.settings.temperature), **baselines}
    best = min(runs, key=lambda run: run.log["validation_loss"])
    metrics = {
        "test": judge({name: values[:n] for name, values in scores.items()}, data.test.labels, threshold),
        "calibration": calibration(logits[:n], best.log["logit_bias"], data.test.labels, router.settings.temperature),
        "frames": judge_frames(router.score, data.test.rows, Frames.read(judging_frames), threshold),
    }
    if questions:
        on_questions = {name: values[n:] for name, values in scores.items()}
        metrics["questions"] = judge_questions(data.questions, on_questions, threshold)
    if len(runs) > 1:
        metrics["seeds"] = [{"seed": run.seed, "validation_loss": run.log["validation_loss"]} for run in runs]
    return metrics


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


def calibration(logits: np.ndarray, logit_bias: float, labels: np.ndarray, temperature: float) -> dict:
    """Expected calibration error on rows that chose neither temperature nor bias, before and after them.

    Args:
        logits: with the bias, shape (n, 2).
        logit_bias: what calibration added to the superior logit.
        labels: 1 is superior, shape (n,).
        temperature: what the logits are divided by.
    """
    draws = bootstrap_weights(len(labels))
    metric = expected_calibration_error(labels)
    return {
        "temperature": temperature,
        "logit_bias": logit_bias,
        "expected_calibration_error_before": vars(estimate(metric, uncalibrated(logits, logit_bias), draws)),
        "expected_calibration_error_after": vars(estimate(metric, calibrated(logits, temperature), draws)),
    }


def uncalibrated(logits: np.ndarray, logit_bias: float) -> np.ndarray:
    """Superior probabilities, shape (n,), as the model gave them before it was calibrated."""
    return calibrated(logits - np.array([0.0, logit_bias]), 1.0)


def markdown_table(report: dict) -> str:
    """The figures of `judge` as a Markdown table, a row per router."""
    columns = list(report["figures"][ROUTER])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, figures in report["figures"].items():
        cells = [str(Estimate(**figures[column])) if column in figures else "–" for column in columns]
        lines.append(f"| {f'**{name}**' if name == ROUTER else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_predictions(folder: Path, router: Router, data: TrainingData) -> None:
    """The validation and the test rows with the router's answer, and what each threshold brings on the former."""
    scores = router.score(data.validation.prompts)
    write_rows(folder / VALIDATION_FILE, with_router_answer(data.validation.rows, scores, router.settings.threshold))
    inferior, superior, source = qualities(data.validation.rows)
    table = tradeoff_table(scores, inferior, superior, f"{len(scores):,} validation prompts, quality {source}")
    write_json(folder / TRADEOFF_FILE, table.model_dump())
    scores = router.score(data.test.prompts)
    write_rows(folder / PREDICTIONS_FILE, with_router_answer(data.test.rows, scores, router.settings.threshold))


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


def write_evidence(
    folder: Path, router: Router, data: TrainingData, record: dict, metrics: dict, runs: "list[TrainedModel]"
) -> None:
    """metrics.json, run.json, the plots and the model card."""
    best = min(runs, key=lambda run: run.log["validation_loss"])
    record["training"] = [run.log for run in runs]
    draw_plots(folder, router, data, best.log)
    write_json(folder / METRICS_FILE, metrics)
    write_json(folder / RUN_FILE, record)
    write_model_card(folder, router, record, metrics)


def draw_plots(folder: Path, router: Router, data: TrainingData, log: dict) -> None:
    """Plots of the test part and of the training, as PNG."""
    test, threshold = data.test, router.settings.threshold
    logits = router.logits(test.prompts)
    scores = calibrated(logits, router.settings.temperature)
    before = uncalibrated(logits, log["logit_bias"])
    plots.reliability(folder / "reliability.png", test.labels, before, scores, "test rows")
    groups = {label: test.labels == i for i, label in enumerate(LABELS)}
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
        "recipe": recipe.as_record(),
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
    lines = [markdown_table(metrics["test"])]
    frames = metrics["frames"]
    lines.append(
        f"in {frames['frames']} frames that were not trained on: {frames['kept']:.1%} of the decisions are those on "
        f"the bare request (worst frame {frames['worst']['kept']:.1%})"
    )
    rho = metrics.get("questions", {}).get("spearman_with_human_preference", {}).get(ROUTER)
    if rho:  # there is none where every question scores alike
        rows = metrics["questions"]["rows"]
        lines.append(f"on {rows} MT-Bench questions: Spearman with the human preference {Estimate(**rho)}")
    return "\n".join(lines)


def write_model_card(folder: Path, router: Router, record: dict, metrics: dict) -> None:
    """README.md with the hub's front matter, filled from what was measured."""
    settings, rows, scaling = router.settings, record["rows"], metrics["calibration"]
    name = folder.name.removesuffix(".unfinished")
    seeds = metrics.get("seeds")
    questions = metrics.get("questions")
    card = Template(CARD_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        base=settings.base_model,
        files=", ".join(f"`{path}`" for path in record["train_files"]),
        train_rows=f"{rows['train']:,}",
        validation_rows=f"{rows['validation']:,}",
        test_rows=f"{rows['test']:,}",
        seeds=f" Of {len(seeds)} seeds the one with the lowest validation loss was kept." if seeds else "",
        max_length=settings.max_length,
        temperature=f"{settings.temperature:.3f}",
        logit_bias=f"{scaling['logit_bias']:+.3f}",
        threshold=settings.threshold,
        thresholds="\n".join(f"| {key} | {value:.3f} |" for key, value in settings.thresholds.items()),
        test_table=markdown_table(metrics["test"]),
        frames_table=frames_table(metrics["frames"]),
        questions=questions_section(questions) if questions else "",
        ece_before=Estimate(**scaling["expected_calibration_error_before"]),
        ece_after=Estimate(**scaling["expected_calibration_error_after"]),
        command="python3 inference/run_gradio_model.py "
        f"--model_save_dir {folder.parent / name} --hf_model_name {settings.base_model}",
    )
    write_text_atomically(folder / CARD_FILE, card)


def questions_section(report: dict) -> str:
    """The model card's section on the MT-Bench questions."""
    return f"""
## On the labelled MT-Bench questions

{report["rows"]} questions that were neither trained on nor shown to the labeller. A question's label follows the human
votes; ties in which every model failed alike count towards the inferior side too.

{markdown_table(report)}
"""


def frames_table(report: dict) -> str:
    """The frames that move the router most, as a Markdown table, after the mean over all."""
    lines = ["| frame | decisions kept | sent to the superior model | AUROC |", "|---|---:|---:|---:|"]
    lines.append(f"| the bare request | | {report['bare']['superior_share']:.1%} | {report['bare']['auroc']:.3f} |")
    lines.append(
        f"| mean of {report['frames']} frames | {report['kept']:.1%} | {report['superior_share']:.1%} "
        f"| {report['auroc']:.3f} |"
    )
    for frame in sorted(report["by_frame"], key=lambda frame: frame["kept"])[:5]:
        lines.append(
            f"| `{frame['frame']}` | {frame['kept']:.1%} | {frame['superior_share']:.1%} | {frame['auroc']:.3f} |"
        )
    return "\n".join(lines)
