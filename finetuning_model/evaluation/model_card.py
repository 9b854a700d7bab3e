"""README.md of a checkpoint, made from its JSON files alone: what it is, what was measured, whether routing pays."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template

from finetuning_model.evaluation.baselines import ROUTER
from finetuning_model.evaluation.markdown import cell, show, table
from router_data import LabelledPrompt, read_rows, write_text_atomically
from router_model import CARD_FILE, METRICS_FILE, PREDICTIONS_FILE, RUN_FILE, RouterSettings, Verdict

TEMPLATE = Path(__file__).with_name("model_card_template.md")
MARKED_SECTION = re.compile(r"(<!-- (verdict|thresholds) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
MAX_FRAMES_SHOWN = 5
MIN_KIND_ROWS = 20  # fewer test rows say little about a kind


def write_model_card(folder: Path) -> None:
    """Write README.md with the hub's front matter, from router.json, run.json, metrics.json and verdict.json."""
    settings = RouterSettings.load(folder)
    run, metrics = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (RUN_FILE, METRICS_FILE))
    rows, scaling = run["rows"], metrics["calibration"]
    like = run["recipe"]["like_prompts"]
    others = ", ".join(f"`{path}`" for path in run["arguments"]["unlabelled_files"]) or "the sample"
    seeds, questions = metrics.get("seeds"), metrics.get("questions")
    name = folder.name.removesuffix(".unfinished")
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        base=settings.base_model,
        files=", ".join(f"`{path}`" for path in run["train_files"]),
        like_prompts=f", and on up to {like:,} prompts of {others} with what those rows say of them" if like else "",
        train_rows=f"{rows['train']:,}",
        validation_rows=f"{rows['validation']:,}",
        test_rows=f"{rows['test']:,}",
        seeds=f" Of {len(seeds)} seeds the one with the lowest validation loss was kept." if seeds else "",
        max_length=settings.max_length,
        temperature=f"{settings.temperature:.3f}",
        logit_bias=f"{scaling['logit_bias']:+.3f}",
        thresholds=thresholds_section(settings),
        verdict=verdict_section(Verdict.load(folder)),
        test_table=figures_table(metrics["test"]),
        frames_table=frames_table(metrics["frames"], MAX_FRAMES_SHOWN),
        questions=questions_section(questions) if questions else "",
        measured_limits=measured_limits(metrics["frames"], list(read_rows(folder / PREDICTIONS_FILE))),
        ece_before=show(scaling["expected_calibration_error_before"]),
        ece_after=show(scaling["expected_calibration_error_after"]),
        command=f"python3 inference/run_gradio_model.py --model_save_dir {folder.parent / name} "
        f"--hf_model_name {settings.base_model}",
    )
    write_text_atomically(folder / CARD_FILE, card)


def update_model_card(folder: Path) -> None:
    """Put verdict and thresholds as they are now into README.md, between the marks there; without marks, nothing."""
    path = folder / CARD_FILE
    if path.exists():
        card = path.read_text(encoding="utf-8")
        sections = {
            "verdict": verdict_section(Verdict.load(folder)),
            "thresholds": thresholds_section(RouterSettings.load(folder)),
        }
        changed = MARKED_SECTION.sub(lambda mark: f"{mark[1]}{sections[mark[2]]}\n{mark[3]}", card)
        if changed != card:
            write_text_atomically(path, changed)


def verdict_section(verdict: Verdict | None) -> str:
    """The verdict in the card's words."""
    if verdict is None:
        return (
            "Not measured yet. Judge it on outcomes of your own two models:\n"
            "`python3 finetuning_model/evaluate_router.py --outcomes my_outcomes.jsonl`"
        )
    return f"{' '.join(verdict.sentences)}\n\nMeasured on {verdict.measured_on} ({verdict.evaluated_at[:10]})."


def thresholds_section(settings: RouterSettings) -> str:
    """The default threshold, and those by target."""
    named = [[f"`{key}`", f"{value:.3f}"] for key, value in settings.thresholds.items()]
    return f"The default is {settings.threshold}. Others, by target:\n\n{table(['target', 'threshold'], named)}"


def figures_table(report: dict) -> str:
    """The figures of `run_report.judge` as a Markdown table, a row per scorer; scorers that are the same share one."""
    columns = list(report["figures"][ROUTER])
    names = defaultdict(list)
    for name, figures in report["figures"].items():
        names[tuple(show(figures.get(column)) for column in columns)].append(name)
    rows = [
        [" = ".join(f"**{name}**" if name == ROUTER else name for name in same), *shown]
        for shown, same in names.items()
    ]
    return table(["", *columns], rows)


def questions_section(report: dict) -> str:
    """The section on the MT-Bench questions."""
    return f"""
## On the labelled MT-Bench questions

{report["rows"]} questions that were neither trained on nor shown to the labeller. A question's label follows the human
votes; ties in which every model failed alike count towards the inferior side too.

{figures_table(report)}
"""


def measured_limits(frames: dict, rows: list[LabelledPrompt]) -> str:
    """What the test rows say about frames and kinds, in sentences.

    Args:
        frames: as `judge_frames` gives it.
        rows: the test rows with the router's answer, and `category` where they have one.
    """
    changed = 1 - frames["kept"]["value"]
    sentences = [f"In the frames above {changed:.0%} of the decisions are not those on the bare request."]
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[getattr(row, "category", None)].append((row.label, row.router_label))  # type: ignore[attr-defined]

    def is_weak(pairs: Sequence[tuple[str, str]]) -> bool:
        labels = [label for label, _ in pairs]
        return sum(label == route for label, route in pairs) <= max(map(labels.count, labels))

    kinds = {kind: pairs for kind, pairs in by_kind.items() if kind and len(pairs) >= MIN_KIND_ROWS}
    if weak := sorted(cell(str(kind)) for kind, pairs in kinds.items() if is_weak(pairs)):
        sentences.append(
            f"Of the {len(kinds)} kinds with {MIN_KIND_ROWS} test rows or more, one decision for the whole kind would "
            f"be right as often on {', '.join(weak)}."
        )
    return " ".join(sentences)


def frames_table(report: dict, most: int) -> str:
    """`judge_frames` as a table: the bare request, the mean, and the `most` frames that move the router most."""

    def row(name: str, found: dict) -> list[str]:
        kept = show(found["kept"], percent=True) if "kept" in found else ""
        return [name, kept, show(found["superior_share"], percent=True), show(found["auroc"])]

    moving = sorted(report["by_frame"], key=lambda frame: frame["kept"]["value"])[:most]
    rows = [row("the bare request", report["bare"]), row(f"mean of {report['frames']} frames", report)]
    rows += [row(f"`{frame['frame']}`", frame) for frame in moving]
    return table(["frame", "decisions kept", "sent to the superior model", "AUROC"], rows)
