"""How sure a figure made of votes is: intervals of a ratio, the bootstrap over questions, split halves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, rankdata

DRAWS = 1000
HALVINGS = 1000


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


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; ties get their mean rank; NaN where one side is constant."""
    a, b = (rankdata(x, axis=-1) - (x.shape[-1] + 1) / 2 for x in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def mean(a: np.ndarray) -> np.ndarray:
    """The mean along the last axis."""
    return a.mean(-1)


def pooled(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """A ratio of all votes: sum of totals over sum of counts, along the last axis."""
    with np.errstate(invalid="ignore"):
        return total.sum(-1) / count.sum(-1)


def bootstrap(statistic: Callable[..., np.ndarray], *by_question: np.ndarray) -> Estimate:
    """A statistic with its 95% percentile interval over 1,000 resamples of the questions (Efron 1979).

    Args:
        statistic: takes arrays and works along their last axis.
        by_question: its arguments, each of shape (questions,).
    """
    n = len(by_question[0])
    drawn = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    return _estimate(statistic(*by_question), statistic(*(x[drawn] for x in by_question)))


def split_half(question: np.ndarray, unit: np.ndarray, score: np.ndarray) -> tuple[Estimate, Estimate]:
    """How well two halves of the votes agree on the order of the questions.

    The units of every question are dealt at random into two halves, and the questions' mean scores in the one are
    correlated (Spearman) with those in the other; a question whose units are all in one half is left out.

    Args:
        question: of each vote, any labels, shape (votes,).
        unit: what isn't torn apart, a label within the question: the vote itself, or its judge; shape (votes,).
        score: shape (votes,).

    Returns:
        The mean correlation over 1,000 random halvings with the range in which 95% of them lie, and the same stepped
        up to the full number of votes by Spearman and Brown's formula (1910), 2r / (1 + r).
    """
    question, unit = (np.unique(labels, return_inverse=True)[1] for labels in (question, unit))
    pairs, unit = np.unique(np.stack([question, unit]), axis=1, return_inverse=True)
    owner = pairs[0]  # the question of each unit, ascending
    first = np.searchsorted(owner, owner)
    random = np.random.default_rng(0)
    draws = np.empty(HALVINGS)
    half = np.empty(len(owner), dtype=int)
    for i in range(HALVINGS):
        order = np.lexsort((random.random(len(owner)), owner))
        half[order] = (np.arange(len(owner)) - first) % 2
        cell = 2 * question + half[unit]
        count = np.bincount(cell, minlength=2 * (owner[-1] + 1)).reshape(-1, 2)
        total = np.bincount(cell, score, minlength=count.size).reshape(-1, 2)
        both = (count > 0).all(axis=1)
        one, other = (total[both] / count[both]).T
        draws[i] = spearman(one, other)
    average = np.mean(draws[np.isfinite(draws)]) if np.isfinite(draws).any() else np.nan
    return _estimate(average, draws), _estimate(stepped_up(average), stepped_up(draws))


def stepped_up(correlation: np.ndarray) -> np.ndarray:
    """Spearman and Brown's formula for twice the votes; a negative correlation counts as none."""
    correlation = np.maximum(correlation, 0)
    return 2 * correlation / (1 + correlation)


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
