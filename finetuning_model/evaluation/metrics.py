"""What a router is measured by, with intervals: label metrics, calibration, and the cost-quality curve on outcomes.

Every metric takes weights: how often each prompt was drawn. One row of ones measures the rows as they are; the rows
of `bootstrap_weights` measure 1,000 resamples at once, so that figures and paired differences get 95% intervals.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass

import numpy as np

DRAWS = 1000
BINS = 15

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]  # scores (n,), weights (draws, n) -> values (draws,)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.show()

    def show(self, percent: bool = False, signed: bool = False) -> str:
        """`0.612 [0.571, 0.650]`, as percentages or with signs if asked for; a dash where there is no value."""
        if self.value is None or math.isnan(self.value):
            return "–"
        form = f"{'+' if signed else ''}{'.1%' if percent else '.3f'}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def bootstrap_weights(n: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each of n prompts is drawn in each resample (Efron's bootstrap), shape (draws, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def estimate(metric: Metric, scores: np.ndarray, draws: np.ndarray) -> Estimate:
    """A metric of `scores` (n,) with its interval from the resamples `draws` (draws, n)."""
    return with_interval(metric(scores, np.ones((1, len(scores))))[0], metric(scores, draws))


def compare_scorers(metric: Metric, scores: dict[str, np.ndarray], draws: np.ndarray) -> dict[str, dict]:
    """A metric of several scorers on the same rows, and how far the first one's exceeds it (paired bootstrap).

    Returns:
        As `with_differences`.
    """
    ones = np.ones((1, draws.shape[1]))
    return with_differences({name: (metric(row, ones)[0], metric(row, draws)) for name, row in scores.items()})


def with_differences(measured: dict[str, tuple[float, np.ndarray]]) -> dict[str, dict]:
    """Figures with intervals, and how far the first scorer's exceeds each, from values on the same resamples.

    Args:
        measured: scorer -> its value, and its values on the resamples, shape (draws,).

    Returns:
        Scorer -> {"figure": Estimate, "difference": Estimate, or None for the first}.
    """
    first, *_ = measured
    value, resampled = measured[first]
    return {
        name: {
            "figure": with_interval(own, own_resampled),
            "difference": None if name == first else with_interval(value - own, resampled - own_resampled),
        }
        for name, (own, own_resampled) in measured.items()
    }


def with_interval(value: float, resampled: np.ndarray) -> Estimate:
    """A value with the 2.5th and the 97.5th percentile of its resamples, shape (draws,); NaN counts for nothing."""
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) if np.isfinite(resampled).any() else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))


def as_json(value):
    """Plain JSON of estimates, arrays and numbers; what has no value (AUROC of one label only, say) becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of any values (n,): a metric of something that is measured prompt by prompt."""
    return weights @ values.astype(np.float64) / weights.sum(1)


# Labels: y (n,) is 0 or 1, or a soft label in between where a metric says so.


def auroc(y: np.ndarray) -> Metric:
    """Area under the ROC curve: how often a superior prompt outscores an inferior one, ties counting half."""

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        starts, order = _ties(scores)
        positive = np.add.reduceat((weights * y)[:, order], starts, axis=1)
        negative = np.add.reduceat((weights * (1 - y))[:, order], starts, axis=1)
        below = negative.sum(1, keepdims=True) - np.cumsum(negative, axis=1)  # scores are sorted from high to low
        pairs = positive.sum(1) * negative.sum(1)
        return _ratio((positive * (below + negative / 2)).sum(1), pairs)

    return metric


def average_precision(y: np.ndarray) -> Metric:
    """Mean precision over the ranks of the superior prompts, ties taken together (scikit-learn's definition)."""

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        starts, order = _ties(scores)
        positive = np.add.reduceat((weights * y)[:, order], starts, axis=1)
        drawn = np.add.reduceat(weights[:, order], starts, axis=1)
        precision = _ratio(np.cumsum(positive, axis=1), np.cumsum(drawn, axis=1))
        return _ratio((precision * positive).sum(1), positive.sum(1))

    return metric


def accuracy(y: np.ndarray, threshold: float) -> Metric:
    """Share of prompts routed as labelled when those at or above the threshold go to the superior model."""
    return lambda scores, weights: average((scores >= threshold) == (y >= 0.5), weights)


def brier(y: np.ndarray) -> Metric:
    """Mean squared distance of the probability from the label or soft label (Brier 1950)."""
    return lambda scores, weights: average((scores - y) ** 2, weights)


def expected_calibration_error(y: np.ndarray, bins: int = BINS) -> Metric:
    """Mean distance between predicted and observed share over equally wide bins (Guo et al. 2017); y may be soft."""

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        member = np.eye(bins)[np.clip((scores * bins).astype(int), 0, bins - 1)]
        gaps = np.abs((weights * (scores - y)) @ member)
        return gaps.sum(1) / weights.sum(1)

    return metric


def spearman(y: np.ndarray) -> Metric:
    """Spearman's rank correlation with y, which may be any number; ties get their mean rank."""
    from scipy.stats import rankdata

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        def correlation(draw: np.ndarray) -> float:
            rows = np.repeat(np.arange(len(y)), draw.astype(int))
            a, b = rankdata(scores[rows]), rankdata(y[rows])
            return np.corrcoef(a, b)[0, 1] if a.std() and b.std() else np.nan

        return np.array([correlation(draw) for draw in weights])

    return metric


OF_PROBABILITIES = ("accuracy", "Brier score", "expected calibration error")  # those that a mere ranking has not


def label_figures(soft_labels: np.ndarray, threshold: float) -> dict[str, Metric]:
    """The metrics of probabilities against labels (0..1, shape (n,): superior from 0.5 on), by name."""
    y = (soft_labels >= 0.5).astype(np.float64)
    return {
        "AUROC": auroc(y),
        "average precision": average_precision(y),
        "accuracy": accuracy(y, threshold),
        "Brier score": brier(y),
        "expected calibration error": expected_calibration_error(y),
    }


# Outcomes: gain (n,) is the superior model's score minus the inferior model's.


def apgr(gain: np.ndarray) -> Metric:
    """Average performance gap recovered (Ong et al. 2024, arXiv 2406.18665).

    Prompts are sorted by score, the first k go to the superior model; PGR(k) is the share of the whole gain that
    those k bring, and APGR its mean over k = 0..n. Prompts of equal score come in random order (its expectation).
    """

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        drawn, gained = _blocks(scores, gain, weights)
        before = np.cumsum(gained, axis=1) - gained
        area = (drawn * before + gained * (drawn + 1) / 2).sum(1)  # the sum of the curve over k = 1..n
        return _ratio(area, gained.sum(1) * (weights.sum(1) + 1))

    return metric


def cpt(gain: np.ndarray, share: float) -> Metric:
    """Call-performance threshold: the share of superior calls at which PGR first reaches `share` (CPT(50): 0.5)."""

    def metric(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        drawn, gained = _blocks(scores, gain, weights)
        after = np.cumsum(gained, axis=1)
        target = share * after[:, -1:]
        first = np.argmax(after >= target - 1e-12, axis=1)
        row = np.arange(len(weights))
        missing = target[:, 0] - (after - gained)[row, first]
        inside = _ratio(missing, gained[row, first]) * drawn[row, first]
        calls = (np.cumsum(drawn, axis=1) - drawn)[row, first] + np.maximum(inside, 0)
        return np.where(after[:, -1] > 0, calls / weights.sum(1), np.nan)

    return metric


def pgr(gain: np.ndarray, calls: float) -> Metric:
    """Share of the quality gap recovered when the `calls` (0..1) of highest score go to the superior model."""
    return lambda scores, weights: _ratio(gain_of_calls(gain, scores, weights, calls), weights @ gain)


def gain_of_calls(gain: np.ndarray, scores: np.ndarray, weights: np.ndarray, calls: float | np.ndarray) -> np.ndarray:
    """The gain, shape (draws,), when the `calls` of highest score go to the superior model.

    Of prompts of equal score an average part is sent.

    Args:
        calls: share of the prompts, 0..1; one for all resamples, or one for each, shape (draws,).
    """
    drawn, gained = _blocks(scores, gain, weights)
    before = np.cumsum(drawn, axis=1) - drawn
    room = np.broadcast_to(calls, len(weights))[:, None] * weights.sum(1, keepdims=True) - before
    sent = np.clip(_ratio(room, drawn), 0, 1)
    return (np.nan_to_num(sent) * gained).sum(1)


def quality_curve(scores: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cost-quality curve: share of superior calls (m,) and PGR there (m,), from (0, 0) to (1, 1)."""
    drawn, gained = _blocks(scores, gain, np.ones((1, len(scores))))
    calls = np.concatenate([[0], np.cumsum(drawn[0])]) / len(scores)
    return calls, np.concatenate([[0], np.cumsum(gained[0])]) / gained.sum()


def uncalibrated(scores: np.ndarray, temperature: float, logit_bias: float) -> np.ndarray:
    """Superior probabilities, shape (n,), as the model gave them before temperature and bias calibrated them."""
    from scipy.special import expit, logit

    return expit(temperature * logit(np.clip(scores, 1e-12, 1 - 1e-12)) - logit_bias)


def fit_temperature(logit_margin: np.ndarray, y: np.ndarray, base_rate: float | None = None) -> tuple[float, float]:
    """Temperature scaling with a bias (Guo et al. 2017; Platt 1999).

    Args:
        logit_margin: superior minus inferior logit, shape (n,).
        y: labels, 0 or 1, shape (n,).
        base_rate: the share of superior labels, where it is known from more rows than these (default: the mean of y,
            which makes the result that of maximum likelihood). A bias from 150 rows alone is off by 0.03 or more.

    Returns:
        The temperature T (0.05..20) and the bias b that minimise the cross entropy of p = sigmoid((margin + b) / T)
        against y among those whose mean p is the base rate.
    """
    from scipy.optimize import brentq, minimize_scalar
    from scipy.special import expit

    rate = np.clip(np.mean(y) if base_rate is None else base_rate, 0.5 / len(y), 1 - 0.5 / len(y))

    def bias_for(t: float) -> float:
        low, high = -logit_margin.max() - 40 * t, -logit_margin.min() + 40 * t
        return brentq(lambda bias: expit((logit_margin + bias) / t).mean() - rate, low, high)

    def cross_entropy(log_t: float) -> float:
        t = np.exp(log_t)
        z = (logit_margin + bias_for(t)) / t
        return float(np.mean(np.logaddexp(0, z) - y * z))

    t = float(np.exp(minimize_scalar(cross_entropy, bounds=(np.log(0.05), np.log(20)), method="bounded").x))
    return t, float(bias_for(t))


def _ties(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])), order


def _blocks(scores: np.ndarray, gain: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts, order = _ties(scores)
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    return drawn, np.add.reduceat((weights * gain)[:, order], starts, axis=1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
