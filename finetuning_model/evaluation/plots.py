"""The pictures of training and evaluation: each function takes arrays and the path of the PNG it writes.

A title states what the picture shows. Teal is the inferior and amber the superior model, here as on the page; the
router is drawn in ink, and what it is compared with in other colours and dashes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from finetuning_model.evaluation.baselines import ORACLE_BY_CATEGORY, RANDOM, ROUTER
from finetuning_model.evaluation.eval_sets import EvalSet, pool_small
from finetuning_model.evaluation.metrics import BINS, apgr, cpt, expected_calibration_error, quality_curve
from router_data import INFERIOR, LABELS, SUPERIOR, TIER_COLORS, Prices

TEAL, AMBER = TIER_COLORS[INFERIOR], TIER_COLORS[SUPERIOR]
INK, MUTED, RULE = "#1f2937", "#8793a1", "#e5e7eb"
OTHERS = ("#2563eb", "#be185d", "#7c3aed", "#4d7c0f", "#0891b2", "#a16207", MUTED)
DASHES = ("--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (2, 2)))
WIDTH = 7.5  # inches
DPI = 150
MAX_CATEGORIES = 20  # in one picture
MIN_CATEGORY_ROWS = 5  # fewer say nothing about a category


def draw_set(
    folder: Path, eval_set: EvalSet, threshold: float, uncalibrated: np.ndarray, prices: Prices | None
) -> list[str]:
    """The plots of a set of an evaluation; returns their names.

    Args:
        uncalibrated: the router's scores without temperature and bias, shape (n,).
    """
    scores, labels, title = eval_set.scores[ROUTER], eval_set.first_labels, eval_set.name
    names = []

    def path(kind: str) -> Path:
        names.append(f"{title.replace(' ', '_')}_{kind}.png")
        return folder / names[-1]

    if eval_set.has_gap:
        rest = {name: values for name, values in eval_set.scores.items() if name != ROUTER}
        cost_quality(path("cost_quality"), scores, rest, eval_set.gain, prices, title)
    if eval_set.has_outcomes:
        fails, gains = eval_set.weak < 0.5, eval_set.gain > 0
        groups = {"the inferior model suffices": ~fails, "only the superior one does better": fails & gains}
        groups["both fail alike"] = fails & ~gains
    else:
        groups = {label: labels == i for i, label in enumerate(LABELS)}
    score_histogram(path("scores"), scores, groups, threshold, title)
    reliability(path("reliability"), labels, uncalibrated, scores, title)
    if len(set(eval_set.categories)) > 1:
        correct = (scores >= threshold) == (labels > 0)
        accuracy_by_category(path("categories"), eval_set.categories, correct, labels, title)
    return names


def cost_quality(
    path: Path,
    router: np.ndarray,
    baselines: dict[str, np.ndarray],
    gain: np.ndarray,
    prices: Prices | None = None,
    subject: str = "",
) -> None:
    """Share of the quality gap recovered against the share of superior calls, with every baseline and the oracle.

    Args:
        router: the router's scores, shape (n,).
        baselines: name -> scores, shape (n,); constant ones are left out, since they are the diagonal.
        gain: the superior model's score minus the inferior model's, shape (n,).
        prices: they add an axis in US dollars for 1,000 prompts.
        subject: what the prompts are, for the title.
    """
    figure, axes = _axes(WIDTH, 6.6)
    one = np.ones((1, len(gain)))
    curves = {name: scores for name, scores in baselines.items() if name != RANDOM and np.ptp(scores) > 0}
    oracle = curves.pop(ORACLE_BY_CATEGORY, None)
    ranked = sorted(curves, key=lambda name: -apgr(gain)(curves[name], one)[0])

    def draw(name: str, scores: np.ndarray, color: str, dashes, width: float) -> None:
        calls, recovered = quality_curve(scores, gain)
        label = f"{name}  {apgr(gain)(scores, one)[0]:.3f}"
        axes.plot(100 * calls, 100 * recovered, color=color, ls=dashes, lw=width, label=label)

    draw("oracle", gain, MUTED, (0, (1, 2)), 1.2)
    if oracle is not None:
        draw(ORACLE_BY_CATEGORY, oracle, MUTED, (0, (4, 2)), 1.2)
    draw("router", router, INK, "-", 2.6)
    for name, color, dashes in zip(ranked, OTHERS, DASHES, strict=False):
        draw(name, curves[name], color, dashes, 1.4)
    axes.plot([0, 100], [0, 100], color=MUTED, lw=1, label="random  0.500")
    axes.set(xlim=(0, 100), xlabel="prompts sent to the superior model, %", ylabel="quality gap recovered (PGR), %")
    if prices and prices.superior > prices.inferior:
        cheapest, dearest = prices.per_thousand(0.0), prices.per_thousand(1.0)
        slope = (dearest - cheapest) / 100
        money = axes.secondary_xaxis(
            "top", functions=(lambda x: cheapest + slope * x, lambda usd: (usd - cheapest) / slope)
        )
        money.set_xlabel("US dollars for 1,000 prompts")
    half = cpt(gain, 0.5)(router, one)[0]
    _title(axes, f"{subject}: half of the quality gap with {half:.0%} of the superior calls (random: 50%)")
    figure.legend(title="area under the curve (APGR)", frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def reliability(path: Path, y: np.ndarray, before: np.ndarray, after: np.ndarray, subject: str = "") -> None:
    """Predicted against observed share, before and after calibration; a dot's area is its number of prompts.

    Args:
        y: labels, 0 or 1, or soft labels, shape (n,).
        before, after: superior probabilities, shape (n,).
    """
    figure, axes = _axes(5.6, 5.6)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1)
    errors = []
    for name, scores, color, marker in (("before", before, OTHERS[0], "s"), ("after", after, INK, "o")):
        errors.append(expected_calibration_error(y)(scores, np.ones((1, len(y))))[0])
        member = np.clip((scores * BINS).astype(int), 0, BINS - 1)
        count = np.bincount(member, minlength=BINS)
        used = count > 0
        predicted = np.bincount(member, scores, BINS)[used] / count[used]
        observed = np.bincount(member, y, BINS)[used] / count[used]
        axes.plot(predicted, observed, color=color, lw=1.2, alpha=0.6)
        label = f"{name}: calibration error {errors[-1]:.3f}"
        size = 12 + 600 * count[used] / len(y)
        axes.scatter(predicted, observed, size, color=color, marker=marker, alpha=0.75, lw=0, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="router score", ylabel="share that needed the superior model")
    _title(axes, f"{subject}: calibration error {errors[0]:.3f} before temperature and bias, {errors[1]:.3f} after")
    for handle in axes.legend(frameon=False, loc="upper left").legend_handles:
        handle.set_sizes([40])
    _save(figure, path)


def score_histogram(
    path: Path, scores: np.ndarray, groups: dict[str, np.ndarray], threshold: float, subject: str = ""
) -> None:
    """How the scores of two or three groups of prompts lie about the threshold.

    Args:
        scores: superior probabilities, shape (n,).
        groups: name -> which prompts belong to it, booleans of shape (n,): those for the inferior model, those for
            the superior one, and those for which it makes no difference.
        threshold: superior from here on.
    """
    figure, axes = _axes(WIDTH, 4.2)
    bins = np.linspace(0, 1, 31)
    found = []
    for (name, member), color, dashes in zip(groups.items(), (TEAL, AMBER, MUTED), ("-", "--", ":"), strict=False):
        if not member.any():
            continue
        share = np.mean(scores[member] >= threshold)
        found.append(f"{share:.0%} of “{name}”")
        weights = np.full(member.sum(), 100 / member.sum())
        label = f"{name} (n = {member.sum():,})"
        axes.hist(scores[member], bins, weights=weights, label=label, histtype="step", color=color, ls=dashes, lw=2)
    axes.axvline(threshold, color=INK, lw=1)
    axes.set(xlim=(0, 1), xlabel="router score (upright line: the threshold)", ylabel="share of the group, %")
    _title(axes, f"{subject}: the router sends {', '.join(found)} to the superior model")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def accuracy_by_category(
    path: Path, categories: Sequence[str], correct: np.ndarray, y: np.ndarray, subject: str = ""
) -> None:
    """Share of decisions that are right in each category, with its 95% interval, beside the majority's share.

    At most MAX_CATEGORIES stand in the picture; the smaller ones, and those of very few prompts, are pooled.

    Args:
        categories: of each prompt, length n.
        correct: whether its decision is right, booleans of shape (n,).
        y: its label, 0 or 1, shape (n,); one answer for the whole category would reach the upright mark.
    """
    from scipy.stats import binomtest

    pooled = pool_small(list(map(str, categories)), MAX_CATEGORIES, MIN_CATEGORY_ROWS)
    names, member = np.unique(np.asarray(pooled), return_inverse=True)
    count, right = np.bincount(member), np.bincount(member, correct)
    share, superior = right / count, np.bincount(member, y >= 0.5) / count
    order = np.argsort(share, kind="stable")
    tests = [binomtest(int(right[i]), int(count[i])) for i in order]
    low, high = np.array([test.proportion_ci(method="wilson") for test in tests]).T
    figure, axes = _axes(WIDTH, 1.6 + 0.26 * len(names))
    rows = np.arange(len(names))
    axes.hlines(rows, 100 * low, 100 * high, color=MUTED, lw=2.5)
    axes.plot(100 * share[order], rows, "o", color=INK, label="router, with its 95% interval")
    best = np.maximum(superior, 1 - superior)[order]
    axes.plot(100 * best, rows, "|", color=OTHERS[0], ms=11, mew=1.8, label="one decision for the whole category")
    labels = [f"{names[i]} ({count[i]:,})".replace("$", r"\$") for i in order]
    axes.set_yticks(rows, labels)
    axes.set(xlim=(0, 101), ylim=(-0.8, len(names) - 0.2), xlabel="decisions that are right, %")
    beaten = int((share[order] > best).sum())
    _title(
        axes,
        f"{subject}: {correct.mean():.0%} of the decisions are right; better than one decision per category in "
        f"{beaten} of {len(names)}",
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def training_curve(
    path: Path,
    epochs: Sequence[float],
    validation_loss: Sequence[float],
    train_epochs: Sequence[float] = (),
    train_loss: Sequence[float] = (),
) -> None:
    """Training and validation loss by epoch; the validation loss of the weights that were kept is marked."""
    figure, axes = _axes(WIDTH, 4.2)
    if len(train_epochs):
        axes.plot(train_epochs, train_loss, "-", color=MUTED, lw=1.4, marker=".", label="training")
    axes.plot(epochs, validation_loss, "o-", color=INK, lw=2, label="validation")
    best = int(np.argmin(validation_loss))
    axes.plot(epochs[best], validation_loss[best], "o", ms=13, mfc="none", mec=OTHERS[1], mew=2, label="kept")
    axes.set(xlim=(0, 1.03 * max([*epochs, *train_epochs])), xlabel="epoch", ylabel="loss (cross entropy)")
    _title(axes, f"Validation loss is lowest after epoch {epochs[best]:.3g}: {validation_loss[best]:.3f}")
    axes.legend(frameon=False)
    _save(figure, path)


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _title(axes, text: str) -> None:
    axes.set_title(text.removeprefix(": "), loc="left", fontsize=10.5, wrap=True)


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib in it, two runs write the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
