"""The pictures of training and evaluation: each function takes arrays and the path of the PNG it writes.

A title states what the picture shows. Colours are Okabe and Ito's, which colour-blind readers can tell apart; curves
also differ in their dashes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from finetuning_model.evaluation.metrics import BINS, apgr, cpt, expected_calibration_error, quality_curve

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#8C8C8C", "#222222"
DASHES = ["--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (2, 2))]
LINES = list(zip((ORANGE, GREEN, PINK, SKY, RED, BLACK, GREY), DASHES, strict=True))
WIDTH = 7.5  # inches
DPI = 150


def cost_quality(
    path: Path, router: np.ndarray, baselines: dict[str, np.ndarray], gain: np.ndarray, prices=None, subject: str = ""
) -> None:
    """Share of the quality gap recovered against the share of superior calls, with every baseline and the oracle.

    Args:
        router: the router's scores, shape (n,).
        baselines: name -> scores, shape (n,); constant ones are left out, since they are the diagonal.
        gain: the superior model's score minus the inferior model's, shape (n,).
        prices: what 1,000 prompts cost with the superior and the inferior model; adds an axis in money.
        subject: what the prompts are, for the title.
    """
    figure, axes = _axes(WIDTH, 6.6)
    one = np.ones((1, len(gain)))
    curves = {name: scores for name, scores in baselines.items() if name != "random" and np.ptp(scores) > 0}
    ranked = sorted(curves, key=lambda name: -apgr(gain)(curves[name], one)[0])
    draw = _curve(axes, gain, one)
    draw("oracle", gain, BLACK, (0, (1, 2)), 1.2)
    draw("router", router, BLUE, "-", 2.6)
    for name, (color, dashes) in zip(ranked, LINES, strict=False):
        draw(name, curves[name], color, dashes, 1.4)
    axes.plot([0, 100], [0, 100], color=GREY, lw=1, label="random  0.500")
    axes.set(xlim=(0, 100), xlabel="prompts sent to the superior model, %", ylabel="quality gap recovered (PGR), %")
    if prices:
        superior, inferior = prices
        slope = (superior - inferior) / 100
        money = axes.secondary_xaxis(
            "top", functions=(lambda x: inferior + slope * x, lambda y: (y - inferior) / slope)
        )
        money.set_xlabel("cost of 1,000 prompts")
    half = cpt(gain, 0.5)(router, one)[0]
    _title(axes, f"{subject}: half of the quality gap with {half:.0%} of the superior calls (random: 50%)")
    figure.legend(title="area under the curve (APGR)", frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def _curve(axes, gain: np.ndarray, one: np.ndarray):
    def draw(name: str, scores: np.ndarray, color: str, dashes, width: float) -> None:
        calls, recovered = quality_curve(scores, gain)
        label = f"{name}  {apgr(gain)(scores, one)[0]:.3f}"
        axes.plot(100 * calls, 100 * recovered, color=color, ls=dashes, lw=width, label=label)

    return draw


def reliability(path: Path, y: np.ndarray, before: np.ndarray, after: np.ndarray, subject: str = "") -> None:
    """Predicted against observed share, before and after temperature scaling; a dot's area is its number of prompts.

    Args:
        y: labels or grades, 0..1, shape (n,).
        before, after: superior probabilities, shape (n,).
    """
    figure, axes = _axes(5.6, 5.6)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1)
    errors = []
    for name, scores, color, marker in (("before", before, ORANGE, "s"), ("after", after, BLUE, "o")):
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
    axes.set(xlabel="predicted superior probability", ylabel="share that needed the superior model")
    _title(axes, f"{subject}: calibration error {errors[0]:.3f} before temperature scaling, {errors[1]:.3f} after")
    for handle in axes.legend(frameon=False, loc="upper left").legend_handles:
        handle.set_sizes([40])
    _save(figure, path)


def score_histogram(
    path: Path, scores: np.ndarray, groups: dict[str, np.ndarray], threshold: float, subject: str = ""
) -> None:
    """How the scores of two or three groups of prompts lie about the threshold.

    Args:
        scores: superior probabilities, shape (n,).
        groups: name -> which prompts belong to it, booleans of shape (n,).
        threshold: superior from here on.
    """
    figure, axes = _axes(WIDTH, 4.2)
    bins = np.linspace(0, 1, 31)
    found = []
    for (name, member), color, dashes in zip(groups.items(), (ORANGE, BLUE, GREEN), ("-", "--", ":"), strict=False):
        if not member.any():
            continue
        share = np.mean(scores[member] >= threshold)
        found.append(f"{share:.0%} of “{name}”")
        weights = np.full(member.sum(), 100 / member.sum())
        label = f"{name} (n = {member.sum():,})"
        axes.hist(scores[member], bins, weights=weights, label=label, histtype="step", color=color, ls=dashes, lw=2)
    axes.axvline(threshold, color=BLACK, lw=1)
    axes.set(xlim=(0, 1), xlabel="superior probability (upright line: the threshold)", ylabel="share of the group, %")
    _title(axes, f"{subject}: the router sends {', '.join(found)} to the superior model")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def accuracy_by_category(
    path: Path, categories: Sequence[str], correct: np.ndarray, y: np.ndarray, subject: str = ""
) -> None:
    """Share of decisions that are right in each category, with Wilson's 95% interval, beside the majority's share.

    Args:
        categories: of each prompt, length n.
        correct: whether its decision is right, booleans of shape (n,).
        y: its label, 0 or 1, shape (n,); one answer for the whole category would reach the grey mark.
    """
    names, member = np.unique(np.asarray(categories, dtype=str), return_inverse=True)
    count = np.bincount(member)
    share = np.bincount(member, correct) / count
    superior = np.bincount(member, y >= 0.5) / count
    order = np.argsort(share, kind="stable")
    low, high = wilson(share[order], count[order])
    figure, axes = _axes(WIDTH, max(2.6, 1.3 + 0.26 * len(names)))
    rows = np.arange(len(names))
    axes.hlines(rows, 100 * low, 100 * high, color=SKY, lw=2.5)
    axes.plot(100 * share[order], rows, "o", color=BLUE, label="router, with its 95% interval")
    best = np.maximum(superior, 1 - superior)[order]
    axes.plot(100 * best, rows, "|", color=BLACK, ms=11, mew=1.8, label="one decision for the whole category")
    axes.set_yticks(rows, [f"{names[i]} ({count[i]:,})" for i in order])
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
    """Validation loss per epoch, and the training loss where it was logged; the best epoch is marked."""
    figure, axes = _axes(WIDTH, 4.2)
    if len(train_epochs):
        axes.plot(train_epochs, train_loss, color=GREY, lw=1, label="training")
    axes.plot(epochs, validation_loss, "o-", color=BLUE, lw=2, label="validation")
    best = int(np.argmin(validation_loss))
    axes.plot(epochs[best], validation_loss[best], "o", ms=13, mfc="none", mec=RED, mew=2)
    axes.set(xlim=(0, None), xlabel="epoch", ylabel="loss (cross entropy)")
    _title(axes, f"Validation loss is lowest after epoch {epochs[best]:g}: {validation_loss[best]:.3f}")
    axes.legend(frameon=False)
    _save(figure, path)


def wilson(share: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval (1927) of a share of `count` prompts: lower and upper ends."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E5E5E5", lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _title(axes, text: str) -> None:
    axes.set_title(text.removeprefix(": "), loc="left", fontsize=10.5, wrap=True)


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib in it, two runs write the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
