"""The pictures of the report: each function takes tables and the path of the PNG it writes.

A title states the finding. Teal is the inferior and amber the superior tier, as in every other plot. The eight colours
of the categories are Okabe and Ito's (grey for their yellow), which colour-blind readers can tell apart; every category
has a marker of its own as well.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dataset_analysis.vote_statistics import Estimate
from router_data import INFERIOR, SUPERIOR, TIER_COLORS

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#222222", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
TEAL, AMBER = TIER_COLORS[INFERIOR], TIER_COLORS[SUPERIOR]
GREY, BLACK = "#8C8C8C", "#222222"
WIDTH = 10  # inches
DPI = 130
RATIO = "inferior ratio: share of votes for the inferior models, a tie counting half"


def ranked_questions(path: Path, questions: pd.DataFrame, threshold: float) -> None:
    """Every question's ratio with its interval, the hardest for the inferior models on top.

    Args:
        questions: columns category, prompt, inferior_ratio, inferior_ratio_low, inferior_ratio_high, difficulty_rank,
            label; indexed by question_id.
        threshold: INFERIOR from here on.
    """
    questions = questions.sort_values("difficulty_rank")
    n = len(questions)
    figure, axes = _axes(WIDTH, 2.2 + 0.185 * n)
    style = _category_styles(questions["category"])
    superior = int((questions["label"] == SUPERIOR).sum())
    axes.axhspan(-0.7, superior - 0.5, color=AMBER, alpha=0.08, lw=0)
    axes.axhspan(superior - 0.5, n - 0.3, color=TEAL, alpha=0.08, lw=0)
    axes.axvline(threshold, color=BLACK, lw=1.1, ls="--")
    for row, question in enumerate(questions.itertuples()):
        color, marker = style[question.category]
        axes.plot(
            [question.inferior_ratio_low, question.inferior_ratio_high], [row, row], color=color, lw=1.6, alpha=0.65
        )
        axes.plot(question.inferior_ratio, row, marker, color=color, ms=7, mec="white", mew=0.5, clip_on=False)
    labels = [f"{clip(question.prompt, 52)}  {question.Index}" for question in questions.itertuples()]
    axes.set_yticks(range(n), labels, fontsize=7.5, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.set(xlim=(-0.01, None), ylim=(n - 0.3, -0.7), xlabel=RATIO)
    for text, row in (("ROUTE_TO_SUPERIOR", superior - 1), ("ROUTE_TO_INFERIOR", superior)):
        axes.text(
            0.99, row, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9, weight="bold"
        )
    hardest, easiest = questions.iloc[0], questions.iloc[-1]
    _title(
        figure,
        f"The inferior models hold up best on question {easiest.name} ({easiest.inferior_ratio:.0%} of the votes), "
        f"worst on {hardest.name} ({hardest.inferior_ratio:.0%});\nthe threshold {threshold:.3f} (dashed) labels "
        f"{superior} of {n} questions {SUPERIOR}",
    )
    _category_legend(figure, style)
    _save(figure, path)


def categories(path: Path, questions: pd.DataFrame, means: pd.DataFrame) -> None:
    """Each category's questions and mean ratio (left), and what its votes were (right).

    Args:
        questions: columns category, inferior_ratio, superior_wins, inferior_wins, ties.
        means: columns value, low, high by category, the lowest first.
    """
    figure = Figure(figsize=(WIDTH, 1.9 + 0.5 * len(means)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _plot_ratios(left, questions, means)
    votes = questions.groupby("category")[["inferior_wins", "ties", "superior_wins"]].sum().loc[means.index]
    share = 100 * votes.div(votes.sum(axis=1), axis=0)
    _plot_votes(right, share)
    for axes in (left, right):
        _tidy(axes)
    low, high = means.iloc[0], means.iloc[-1]
    tied = share["ties"].idxmax()
    _title(
        figure,
        f"The inferior models hold up best in {high.name} (mean ratio {high['value']:.2f}) and worst in {low.name} "
        f"({low['value']:.2f});\nties are most frequent in {tied}: {share.loc[tied, 'ties']:.0f}% of its votes",
    )
    _save(figure, path)


def _plot_ratios(axes: Axes, questions: pd.DataFrame, means: pd.DataFrame) -> None:
    """Each category's questions as dots, and their mean with its interval."""
    style = _category_styles(questions["category"])
    random = np.random.default_rng(0)
    for row, (name, mean) in enumerate(means.iterrows()):
        color, marker = style[name]
        ratios = questions.loc[questions["category"] == name, "inferior_ratio"]
        height = row + random.uniform(-0.22, 0.22, len(ratios))
        axes.plot(ratios, height, marker, color=color, ms=6, alpha=0.7, mew=0)
        axes.plot([mean["low"], mean["high"]], [row, row], color=BLACK, lw=2.2)
        axes.plot(mean["value"], row, "|", color=BLACK, ms=17, mew=2.6)
    axes.set_yticks(range(len(means)), means.index)
    axes.set(xlim=(-0.015, None), xlabel="inferior ratio")
    axes.set_title("each question; bar: mean with its 95% interval", loc="left", fontsize=9.5)


def _plot_votes(axes: Axes, share: pd.DataFrame) -> None:
    """What each category's votes were, in percent, as stacked bars."""
    start = np.zeros(len(share))
    for column, color, hatch in (("inferior_wins", TEAL, ""), ("ties", "#DADADA", "///"), ("superior_wins", AMBER, "")):
        axes.barh(range(len(share)), share[column], 0.62, start, color=color, hatch=hatch, ec="white", lw=0,
                  label=column.replace("_", " "))  # fmt: skip
        for row, value in enumerate(share[column]):
            back = None if column != "ties" else {"fc": "#DADADA", "ec": "none", "pad": 1}
            axes.text(start[row] + value / 2, row, f"{value:.0f}", ha="center", va="center", fontsize=8.5,
                      color=BLACK if column == "ties" else "white", bbox=back)  # fmt: skip
        start += share[column].to_numpy()
    axes.set(xlim=(0, 100), xlabel="share of the category's votes, %")
    axes.legend(ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=8.5, handlelength=1.2,
                columnspacing=1.2)  # fmt: skip


def human_against_gpt4(path: Path, questions: pd.DataFrame, gpt4_ratio: pd.Series, correlation: Estimate) -> None:
    """Each question's ratio by the human votes and by GPT-4's; the most disputed are numbered.

    Args:
        questions: columns category and inferior_ratio, by question_id.
        gpt4_ratio: by question_id.
        correlation: Spearman's.
    """
    figure, axes = _axes(8, 7.4)
    style = _category_styles(questions["category"])
    x, y = questions["inferior_ratio"], gpt4_ratio.reindex(questions.index)
    top = 1.06 * max(x.max(), y.max())
    axes.plot([0, top], [0, top], color=GREY, lw=1)
    axes.text(0.93 * top, 0.94 * top, "equal", color="#5F5F5F", fontsize=8.5, ha="right")
    for name, (color, marker) in style.items():
        member = questions["category"] == name
        axes.plot(x[member], y[member], marker, color=color, ms=8, alpha=0.85, mec="white", mew=0.6, clip_on=False)
    disputed = (x - y).abs().nlargest(8).index
    for number in disputed:  # the text stands to the left where a disputed neighbour stands to the right
        gap = (x[disputed] - x[number]).between(0, 0.05 * top) & (disputed != number)
        crowded = (gap & ((y[disputed] - y[number]).abs() < 0.03 * top)).any()
        axes.annotate(str(number), (x[number], y[number]), (-5 if crowded else 5, 5), textcoords="offset points",
                      ha="right" if crowded else "left", fontsize=8.5)  # fmt: skip
    axes.set(xlim=(-0.012, top), ylim=(-0.012, top), aspect="equal")
    axes.set(xlabel="inferior ratio by the human votes", ylabel="inferior ratio by the GPT-4 judge")
    stricter = (y < x).mean()
    _title(
        figure,
        f"The GPT-4 judge orders the questions only partly as people do: Spearman {correlation:.2f};\n"
        f"it is harder on the inferior models in {stricter:.0%} of the questions (below the line)"
        if correlation.value < 0.7
        else f"The GPT-4 judge orders the questions much as people do: Spearman {correlation:.2f}",
    )
    _category_legend(figure, style)
    _save(figure, path)


def preference_grid(path: Path, panels: dict[str, pd.DataFrame]) -> None:
    """How often each inferior model is preferred to each superior one, tier against tier in the margins.

    Args:
        panels: judge -> one row per pair: columns superior, inferior, votes, value, low, high; a tier as a whole has
            the name "all".
    """
    cells = pd.concat(panels.values())
    columns, rows = (list(dict.fromkeys(cells[name])) for name in ("inferior", "superior"))
    figure = Figure(figsize=(1.6 + 1.55 * len(columns) * len(panels), 2.1 + 0.85 * len(rows)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    shades, end = LinearSegmentedColormap.from_list("inferior", ["white", TEAL]), 1.5 * cells["value"].max()
    for axes, (judge, pairs) in zip(all_axes, panels.items(), strict=True):
        table = pairs.set_index(["superior", "inferior"])
        values = table["value"].unstack().reindex(index=rows, columns=columns)
        axes.imshow(values, cmap=shades, vmin=0, vmax=end, aspect="auto")  # light enough for dark letters
        for (superior, inferior), cell in table.iterrows():
            place = (columns.index(inferior), rows.index(superior))
            axes.annotate(f"{cell['value']:.0%}", place, (0, 4), textcoords="offset points", ha="center", va="bottom",
                          fontsize=13, weight="bold", color=BLACK, annotation_clip=False)  # fmt: skip
            detail = f"{cell['low']:.0%} to {cell['high']:.0%}\n{cell['votes']:,.0f} votes"
            axes.annotate(detail, place, (0, 1), textcoords="offset points", ha="center", va="top", fontsize=8,
                          color=BLACK)  # fmt: skip
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(judge, loc="left", fontsize=10)
        axes.set_xlabel("inferior model")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.axvline(len(columns) - 1.5, color="white", lw=6)
        axes.axhline(len(rows) - 1.5, color="white", lw=6)
    all_axes[0].set_ylabel("superior model")
    human = next(iter(panels.values()))
    best = human[(human["superior"] != "all") & (human["inferior"] != "all")].nlargest(1, "value").iloc[0]
    _title(
        figure,
        f"The closest match: people side with {best['inferior']} against {best['superior']} in {best['value']:.0%} of "
        "the votes (a tie counting half)",
    )
    _save(figure, path)


def _category_styles(column: pd.Series) -> dict[str, tuple[str, str]]:
    """Colour and marker by category, the same in every picture."""
    names = sorted(set(column))
    return {name: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _category_legend(figure: Figure, style: dict[str, tuple[str, str]]) -> None:
    handles = [Line2D([], [], color=c, marker=m, ls="", ms=7, label=name) for name, (c, m) in style.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9, handletextpad=0.2,
                  columnspacing=1.2)  # fmt: skip


def clip(text: str, length: int) -> str:
    """The text on one line, at most `length` characters long."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E5E5E5", lw=0.7)
    axes.set_axisbelow(True)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.012, ha="left", fontsize=11.5)


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib in it, two runs write the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
