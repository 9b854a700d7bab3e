"""What every threshold brings on prompts of known quality, and the thresholds that meet a target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetuning_model.evaluation.metrics import Estimate, bootstrap_weights, estimate
from router_data import InputError, LabelledPrompt, Prices
from router_model import TradeoffTable

CHECKPOINT_SUPERIOR_PERCENTS = (10, 20, 30, 50)
CHECKPOINT_QUALITY_PERCENTS = (90, 95, 99)
TABLE_STEPS = 200  # of the threshold in tradeoff.json
EPSILON = 1e-9  # a share that misses its target by rounding meets it


@dataclass(frozen=True)
class Tradeoff:
    """What every possible threshold brings on some prompts, from no superior call to nothing else; each shape (m,).

    Attributes:
        thresholds: falling; a prompt whose score reaches the threshold goes to the superior model.
        superior_share: share of prompts that do, rising.
        quality: mean quality of the routed answers, as a share of the superior model's mean quality.
    """

    thresholds: np.ndarray
    superior_share: np.ndarray
    quality: np.ndarray


@dataclass(frozen=True)
class Target:
    """Something a threshold must achieve: `key` names it in router.json, `text` in a sentence."""

    key: str
    text: str
    measure: Callable[[Tradeoff], np.ndarray]
    limit: float
    at_least: bool
    show: Callable[[float], str]

    def met(self, tradeoff: Tradeoff) -> np.ndarray:
        """Which thresholds meet it, booleans of shape (m,)."""
        values = self.measure(tradeoff)
        return values >= self.limit - EPSILON if self.at_least else values <= self.limit + EPSILON


def tradeoff(scores: np.ndarray, inferior_quality: np.ndarray, superior_quality: np.ndarray) -> Tradeoff:
    """What every threshold brings on prompts of known quality.

    Args:
        scores: the router's superior probabilities, shape (n,).
        inferior_quality: quality of the inferior model's answer, shape (n,); measured, or the chance that it is good
            enough (`qualities`).
        superior_quality: the same of the superior model's answer.

    Raises:
        InputError: no prompts, or the superior model's mean quality is not positive.
    """
    if not len(scores):
        raise InputError("no prompts to choose a threshold on; name a file with --prompts")
    if superior_quality.mean() <= 0:
        raise InputError("the superior model's mean score is not positive, so no share of its quality can be reached")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last prompt of each block of equal scores
    gained = np.cumsum((superior_quality - inferior_quality)[order])[ends]
    thresholds = [_between(low, high) for high, low in zip(ranked[ends][:-1], ranked[ends][1:], strict=True)] + [0.0]
    share, quality = (ends + 1) / len(scores), (inferior_quality.sum() + gained) / superior_quality.sum()
    if ranked[0] < 1:  # else no threshold of 0..1 keeps every prompt from the superior model
        thresholds = [_between(ranked[0], 1.0), *thresholds]
        share = np.append(0.0, share)
        quality = np.append(inferior_quality.sum() / superior_quality.sum(), quality)
    return Tradeoff(np.array(thresholds), share, quality)


def tradeoff_at(
    threshold: float, scores: np.ndarray, inferior_quality: np.ndarray, superior_quality: np.ndarray
) -> Tradeoff:
    """What one threshold brings; arguments as those of `tradeoff`."""
    sent = scores >= threshold
    quality = np.where(sent, superior_quality, inferior_quality).sum() / superior_quality.sum()
    return Tradeoff(np.array([threshold]), np.array([sent.mean()]), np.array([quality]))


def qualities(rows: Sequence[LabelledPrompt]) -> tuple[np.ndarray, np.ndarray, str]:
    """How good both models' answers are expected to be, each shape (n,), and where that comes from, in words.

    Where every row has the labeller's two qualities, those; else the inferior answer is good enough with probability
    1 - soft label and the superior one always.
    """
    pairs = [(row.inferior_quality, row.superior_quality) for row in rows]
    if all(inferior is not None and superior is not None for inferior, superior in pairs):
        known = np.array(pairs, dtype=float).reshape(-1, 2)
        return known[:, 0], known[:, 1], "expected by the labeller's two qualities"
    soft_labels = np.array([row.soft_label for row in rows])
    return 1 - soft_labels, np.ones(len(rows)), "expected from the soft labels"


def tradeoff_table(scores: np.ndarray, inferior: np.ndarray, superior: np.ndarray, measured_on: str) -> TradeoffTable:
    """`tradeoff.json`: share and quality at evenly spaced thresholds, with 95% bootstrap intervals over prompts.

    Args:
        scores: the router's, shape (n,).
        inferior, superior: quality of each model's answers, shape (n,).
        measured_on: which prompts, and where their quality comes from.
    """
    thresholds = np.linspace(0, 1, TABLE_STEPS + 1)
    draws = bootstrap_weights(len(scores))
    estimates = [quality_estimate(scores, threshold, inferior, superior, draws) for threshold in thresholds]
    return TradeoffTable(
        measured_on=measured_on,
        rows=len(scores),
        inferior_quality=float(inferior.sum() / superior.sum()),
        thresholds=[round(float(threshold), 6) for threshold in thresholds],
        superior_share=[float(np.mean(scores >= threshold)) for threshold in thresholds],
        quality=[estimate.value for estimate in estimates],
        quality_low=[estimate.low for estimate in estimates],
        quality_high=[estimate.high for estimate in estimates],
    )


def _between(low: float, high: float) -> float:
    """The number of fewest decimals in (low, high], nearest to its middle."""
    for decimals in range(2, 17):
        number = round((low + high) / 2, decimals)
        if low < number <= high:
            return float(number)
    return float(high)


def at_most_superior(percent: float) -> Target:
    """At most `percent` (0..100) of the prompts go to the superior model."""
    return Target(
        f"at_most_{percent:g}_percent_superior",
        f"at most {percent:g}% to the superior model",
        lambda tradeoff: tradeoff.superior_share,
        percent / 100,
        False,
        lambda share: f"{share:.1%} to the superior model",
    )


def at_least_quality(percent: float, confidence: float | None = None) -> Target:
    """At least `percent` of the quality that the superior model alone would give; with which confidence, for its name.

    `choose` meets it on the prompts at hand; what holds on new ones is `guarantee.guaranteed_threshold`.
    """
    sure = "" if confidence is None else f" with {confidence:g}% confidence"
    return Target(
        f"at_least_{percent:g}_percent_quality" + sure.replace("%", "_percent").replace(" ", "_"),
        f"at least {percent:g}% of the superior model's quality{sure}",
        lambda tradeoff: tradeoff.quality,
        percent / 100,
        True,
        lambda quality: f"{quality:.1%} of the superior model's quality",
    )


def at_most_cost(budget: float, prices: Prices) -> Target:
    """At most `budget` US dollars for 1,000 prompts.

    Raises:
        InputError: the superior model is not the dearer one.
    """
    if prices.superior <= prices.inferior:
        raise InputError("--price_superior must be more than --price_inferior: else there is nothing to save")
    return Target(
        f"at_most_{budget:g}_usd_per_1000_prompts",
        f"at most ${budget:g} per 1,000 prompts",
        lambda tradeoff: prices.per_thousand(tradeoff.superior_share),
        budget,
        False,
        lambda cost: f"${cost:.4g} per 1,000 prompts",
    )


def choose(tradeoff: Tradeoff, *targets: Target) -> float:
    """The threshold that meets all targets at once.

    With a quality to keep it is the cheapest such threshold; with budgets alone the one that spends them.

    Raises:
        InputError: they can't be met; says what can.
    """
    for target in targets:
        if not target.met(tradeoff).any():
            values = target.measure(tradeoff)
            nearest = values.max() if target.at_least else values.min()
            raise InputError(f"{target.text}: can't be met; the nearest that can is {target.show(float(nearest))}")
    meets = np.flatnonzero(np.all([target.met(tradeoff) for target in targets], axis=0))
    if len(meets):
        return float(tradeoff.thresholds[meets[0] if any(target.at_least for target in targets) else meets[-1]])
    apart = []
    for target in targets:
        alone = np.flatnonzero(tradeoff.thresholds == choose(tradeoff, target))[0]
        others = [other.show(float(other.measure(tradeoff)[alone])) for other in targets if other is not target]
        apart.append(f"{target.text} goes with {' and '.join(others)}")
    raise InputError(f"the targets can't be met at once; the nearest that can: {'; '.join(apart)}")


def offered_thresholds(tradeoff: Tradeoff) -> dict[str, float]:
    """The thresholds that router.json offers, by the names of their targets, as far as these can be met."""
    targets = [at_most_superior(percent) for percent in CHECKPOINT_SUPERIOR_PERCENTS]
    targets += [at_least_quality(percent) for percent in CHECKPOINT_QUALITY_PERCENTS]
    return {target.key: choose(tradeoff, target) for target in targets if target.met(tradeoff).any()}


def thresholds_for_checkpoint(scores: np.ndarray, rows: Sequence[LabelledPrompt]) -> dict[str, float]:
    """`offered_thresholds` on the validation part.

    Args:
        scores: calibrated router scores of the validation rows, shape (n,).
        rows: those rows.
    """
    inferior, superior, _ = qualities(rows)
    return offered_thresholds(tradeoff(scores, inferior, superior))


def quality_estimate(
    scores: np.ndarray, threshold: float, inferior: np.ndarray, superior: np.ndarray, draws: np.ndarray
) -> Estimate:
    """Quality at a threshold as a share of the superior model's, with its 95% bootstrap interval over prompts.

    Args:
        scores: the router's, shape (n,).
        inferior, superior: quality of each model's answers, shape (n,).
        draws: resamples, shape (draws, n).
    """

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weights @ np.where(scores >= threshold, superior, inferior) / (weights @ superior)

    return estimate(metric, scores, draws)
