"""Rows of few_outcomes.py as curves with intervals, as tables and as a plot."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.outcome_learners import NAMES
from finetuning_model.evaluation.markdown import show, table
from finetuning_model.evaluation.metrics import Estimate, as_json, with_interval
from router_data import InputError, write_text_atomically

ROUTER = "router"
MIXTURE = "mixture"
SECTION = re.compile(r"(?<=<!-- few outcomes -->\n).*?(?=<!-- end of few outcomes -->)", re.DOTALL)
PLOT = "![APGR by the number of outcomes](images/few_outcomes.png)"
Curves = dict[str, dict[int, dict]]  # way -> outcomes -> figures


def summarise(rows: Sequence[dict]) -> dict[str, Curves]:
    """The curves of each set: APGR as the mean over draws, and its difference to the router on the same prompts.

    Raises:
        InputError: one draw was judged on other prompts than the router, so that the two don't compare.
    """
    measured = {(row["set"], row["way"], row["outcomes"], row["draw"]): row for row in rows}
    found: dict[str, Curves] = defaultdict(lambda: defaultdict(dict))
    grouped = defaultdict(list)
    for (name, way, size, draw), row in sorted(measured.items()):
        router = measured.get((name, ROUTER, size, draw))
        if router and router["judged"] != row["judged"]:
            raise InputError(f"{name}, {size} outcomes: {way} was judged on other prompts than the router; begin anew")
        grouped[name, way, size].append((row, router))
    for (name, way, size), pairs in grouped.items():
        kept = [(row, router) for row, router in pairs if "apgr" in row]
        figures: dict = {"draws": len(kept), "refused": len(pairs) - len(kept)}
        if kept:
            figures |= {key: float(np.mean([row[key] for row, _ in kept])) for key in ("judged", "seconds")}
            figures["apgr"] = over_draws([row for row, _ in kept])
            beside = [less(row, router) for row, router in kept if router]
            if way != ROUTER and len(beside) == len(kept):
                figures["over_router"] = over_draws(beside)
        found[name][way][size] = figures
    return found


def less(row: dict, router: dict) -> dict:
    """How far a draw's figures exceed the router's, resample by resample."""
    resampled = np.subtract(row["resampled"], router["resampled"])
    return {"apgr": row["apgr"] - router["apgr"], "resampled": resampled}


def over_draws(draws: Sequence[dict]) -> Estimate:
    """The mean over draws; its interval resamples both draws and prompts."""
    values = np.array([draw["resampled"] for draw in draws])  # (draws, resamples)
    chosen = np.random.default_rng(0).integers(0, len(draws), size=values.shape)
    resampled = np.take_along_axis(values, chosen, axis=0).mean(axis=0)
    return with_interval(float(np.mean([draw["apgr"] for draw in draws])), resampled)


def curves_table(curves: Curves) -> str:
    """A row for each number of outcomes, a column for each way; ▲ and ▼ where it differs from the router."""
    sizes = sorted({size for curve in curves.values() for size in curve})
    ways = [way for way in NAMES if way in curves]
    most = max(figures["draws"] for curve in curves.values() for figures in curve.values())
    rows = [[str(size), *(cell(curves[way].get(size), most if size else 0) for way in ways)] for size in sizes]
    return table(["outcomes", *(NAMES[way] for way in ways)], rows)


def cell(figures: dict | None, most_draws: int) -> str:
    """APGR with its interval, whether it differs from the router's, and the number of draws where others have more.

    A dash where nothing was measured.
    """
    if not figures:
        return "–"
    refused = f" ({figures['refused']} refused)" if figures["refused"] else ""
    difference = figures.get("over_router")
    mark = " ▲" if difference and difference.low > 0 else " ▼" if difference and difference.high < 0 else ""
    fewer = 0 < figures["draws"] < most_draws - figures["refused"]
    draws = f" ({figures['draws']} of {most_draws} draws)" if fewer else ""
    return show(as_json(figures.get("apgr"))) + mark + draws + refused


def write(found: dict[str, Curves], folder: Path, router: str) -> None:
    """The tables and the plot, in docs/; the mixture's table in results.md too, between its marks."""
    parts = [INTRODUCTION.format(router=router)]
    parts += [f"## {name}\n\n{curves_table(curves)}" for name, curves in ordered(found)]
    write_text_atomically(folder / "few_outcomes.md", "\n\n".join(parts) + "\n")
    draw(folder / "images" / "few_outcomes.png", found)
    if MIXTURE in found:
        results = (folder / "results.md").read_text(encoding="utf-8")
        section = f"{curves_table(found[MIXTURE])}\n\n{PLOT} [All kinds](few_outcomes.md).\n"
        write_text_atomically(folder / "results.md", SECTION.sub(lambda _: section, results))
    print(f"wrote few_outcomes.md, results.md and images/few_outcomes.png in {folder}")


INTRODUCTION = f"""\
# Few outcomes of your own

Made by `python3 benchmarks/few_outcomes.py --docs`; the router is {{router}}.

APGR on the prompts of a set that were not drawn, mean over draws, with 95% intervals over draws and prompts. ▲ and ▼:
better or worse than the router as it is, on the same draws and resamples. A figure of fewer draws than its neighbours
may not be compared with them: draws differ more than ways do. Refused, and not in the mean: draws with too few
prompts of one label to train on and judge by.

{PLOT}"""


def ordered(found: dict[str, Curves]) -> list[tuple[str, Curves]]:
    """The mixture first."""
    return sorted(found.items(), key=lambda item: (item[0] != MIXTURE, item[0]))


def draw(path: Path, found: dict[str, Curves]) -> None:
    """A panel for each set: APGR against the number of outcomes, a line for each way, with its interval."""
    from matplotlib.figure import Figure

    from finetuning_model.evaluation.plots import DASHES, DPI, INK, OTHERS, RULE

    sets = ordered(found)
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows + 1), layout="constrained")
    styles = dict(zip(NAMES, zip((INK, *OTHERS), ("-", *DASHES), strict=False), strict=False))
    lines = {}
    for number, (name, curves) in enumerate(sets, 1):
        axes = figure.add_subplot(rows, columns, number)
        sizes = sorted({size for curve in curves.values() for size in curve})
        for way, (color, dashes) in styles.items():
            points = [entry for entry in sorted(curves.get(way, {}).items()) if entry[1]["draws"]]
            at = np.array([sizes.index(size) for size, _ in points])
            low, value, high = (
                np.array([getattr(e["apgr"], end) for _, e in points]) for end in ("low", "value", "high")
            )
            if len(at):
                axes.fill_between(at, low, high, color=color, alpha=0.07, lw=0)
                (lines[way],) = axes.plot(at, value, marker="o", ms=3, lw=1.6, color=color, ls=dashes)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlabel("outcomes to learn from")
        axes.set_title(name, loc="left", fontsize=10.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=RULE, lw=0.7)
    figure.supylabel("APGR on the other prompts")
    shown = [way for way in NAMES if way in lines]
    handles, labels = [lines[way] for way in shown], [NAMES[way] for way in shown]
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
