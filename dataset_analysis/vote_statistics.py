"""How sure a figure made of votes is: intervals of a ratio, the bootstrap over questions, split halves."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from scipy.stats import beta

RESAMPLES = 1000  # of the questions, for a bootstrap interval
HALVINGS = 1000  # of the votes, for their reliability


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def beta_interval(wins: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% interval of a ratio wins / votes under Jeffreys' prior, Beta(1/2, 1/2).

    The ends are quantiles of the posterior, but 0 where nothing was won and 1 where everything was (Brown, Cai and
    DasGupta 2001, section 4.1.2). Half a win for a tie is allowed; it makes the interval wider than a tie deserves,
    never narrower.

    Args:
        wins, votes: arrays of one shape, 0 <= wins <= votes.

    Returns:
        Lower and upper ends, in that shape.
    """
    low, high = (beta.ppf(q, wins + 0.5, votes - wins + 0.5) for q in (0.025, 0.975))
    return np.where(wins == 0, 0.0, low), np.where(wins == votes, 1.0, high)


def probability_below(threshold: float, wins: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """How likely the true ratio is below the threshold, by the same posterior as `beta_interval`."""
    return beta.cdf(threshold, wins + 0.5, votes - wins + 0.5)


def spearman(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's rank correlation along an axis; ties get their mean rank; NaN where one side is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a constant side or a single value: NaN says it
        return scipy.stats.spearmanrho(a, b, axis=axis).statistic


def pooled(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
    """A ratio of all votes: sum of totals over sum of counts, along an axis."""
    return total.sum(axis) / count.sum(axis)


def bootstrap(statistic: Callable[..., np.ndarray], *by_question: np.ndarray) -> Estimate:
    """A statistic with its 95% percentile interval over resamples of the questions (Efron 1979).

    Args:
        statistic: takes arrays and works along their `axis`.
        by_question: its arguments, each of shape (questions,); a single question has no interval.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # resamples in which the statistic is NaN are left out
        value = statistic(*by_question)
        if len(by_question[0]) < 2:
            return _estimate(value, np.atleast_1d(value))
        result = scipy.stats.bootstrap(
            by_question, statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, method="percentile", rng=0
        )
    return _estimate(value, result.bootstrap_distribution)


def split_half(question: np.ndarray, unit: np.ndarray, score: np.ndarray) -> tuple[Estimate, Estimate]:
    """How well two halves of the votes agree on the order of the questions.

    The units of every question are dealt at random into two halves, and the questions' mean scores in the one are
    correlated (Spearman) with those in the other; a question whose units are all in one half is left out.

    Args:
        question: of each vote, any labels, shape (votes,).
        unit: what isn't torn apart, a label within the question: the vote itself, or its judge; shape (votes,).
        score: shape (votes,).

    Returns:
        The mean correlation over 1,000 random halvings with the range in which 95% of them lie, and the same
        extrapolated to the full number of votes (`spearman_brown`).
    """
    question, unit = (np.unique(labels, return_inverse=True)[1] for labels in (question, unit))
    pairs, unit = np.unique(np.stack([question, unit]), axis=1, return_inverse=True)
    owner = pairs[0]  # the question of each unit, ascending
    first = np.searchsorted(owner, owner)
    both = np.bincount(owner) > 1  # dealt in turn, two units or more reach both halves
    random = np.random.default_rng(0)
    means = np.empty((2, HALVINGS, both.sum()))
    half = np.empty(len(owner), dtype=int)
    for i in range(HALVINGS):
        order = np.lexsort((random.random(len(owner)), owner))
        half[order] = (np.arange(len(owner)) - first) % 2
        cell = 2 * question + half[unit]
        count = np.bincount(cell, minlength=2 * len(both)).reshape(-1, 2)[both]
        means[:, i] = (np.bincount(cell, score, minlength=2 * len(both)).reshape(-1, 2)[both] / count).T
    correlations = spearman(*means) if both.sum() > 1 else np.full(HALVINGS, np.nan)
    average = np.mean(correlations[np.isfinite(correlations)]) if np.isfinite(correlations).any() else np.nan
    return _estimate(average, correlations), _estimate(spearman_brown(average), spearman_brown(correlations))


def spearman_brown(correlation: np.ndarray | float) -> np.ndarray:
    """The correlation expected with twice the votes, 2r / (1 + r) (Spearman, Brown 1910); below zero counts as zero."""
    correlation = np.maximum(correlation, 0)
    return 2 * correlation / (1 + correlation)


def _estimate(value: np.ndarray | float, draws: np.ndarray) -> Estimate:
    """A figure with the range in which 95% of its draws lie; those that are NaN are left out."""
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
