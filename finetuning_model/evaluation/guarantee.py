"""A threshold whose quality holds on new prompts with a stated confidence: Learn then Test on outcomes.

Angelopoulos, Bates, Candès, Jordan and Lei (2021, arXiv 2110.01052): each threshold's claim "the routed answers keep at
least the share q of the superior model's quality" is a hypothesis test, and thresholds are tested in an order that is
fixed in advance, from safe to bold, until the first one fails (fixed-sequence testing). The chance that the claim made
in the end is false is at most 1 - confidence, for any number of outcomes and any distribution. It takes outcomes that
are independent draws from the prompts to come, that were not trained on, and whose qualities lie in 0..1.

The p-value is that of a betting bound (Waudby-Smith and Ramdas 2024, section 4): a gambler bets, prompt by prompt, that
quality is kept. If it is not, the wealth exceeds 1 / p with a probability of at most p (Ville's inequality). The bets
follow the variance seen so far, so that few outcomes do where the two models mostly agree; bounds that know the range
alone (Hoeffding, Bentkus) never certified one of the cases tried with up to 1,600 outcomes.
"""

import numpy as np

from router_data import InputError

THRESHOLDS = np.linspace(0, 1, 1001)  # in the order of the tests; must not depend on the outcomes
MAX_BET = 0.99  # as a share of the bet that could lose everything
MIN_INFERIOR_SHARE = 0.1  # of the prompts; where less goes to the inferior model, a guarantee is not worth having
MAX_OUTCOMES = 1_000_000


def guaranteed_threshold(
    scores: np.ndarray, weak: np.ndarray, strong: np.ndarray, quality: float, confidence: float
) -> float:
    """The highest threshold of which it is sure enough that the routed answers keep `quality`.

    Args:
        scores: the router's, shape (n,).
        weak, strong: quality of the inferior and the superior model's answers, 0..1, shape (n,).
        quality: share of the superior model's mean quality to keep, between 0 and 1.
        confidence: that it is kept on new prompts, between 0 and 1.

    Raises:
        InputError: qualities outside 0..1, or too few outcomes; says how many it would take.
    """
    if min(weak.min(), strong.min()) < 0 or max(weak.max(), strong.max()) > 1:
        raise InputError("a guarantee needs weak_score and strong_score within 0..1; divide them by the highest grade")
    order = np.random.default_rng(0).permutation(len(scores))  # in which the bets are made
    scores, weak, strong = scores[order], weak[order], strong[order]
    accepted, below = None, -1
    for threshold in THRESHOLDS:
        if (scores < threshold).sum() > below:  # else it decides as the one before it did
            below = (scores < threshold).sum()
            if p_value(losses(scores, weak, strong, quality, threshold), quality, confidence) > 1 - confidence:
                break
        accepted = float(threshold)
    if accepted is None or not (scores < accepted).any():
        needed = outcomes_needed(scores, weak, strong, quality, confidence)
        more = "no number of outcomes like these would do, so ask for a lower quality"
        if needed:
            more = f"it would take about {needed:,} like these, so collect more, or ask for a lower quality"
        raise InputError(
            f"{len(scores):,} outcomes are too few to guarantee {100 * quality:g}% of the superior model's quality "
            f"with {100 * confidence:g}% confidence: {more}"
        )
    return accepted


def losses(scores: np.ndarray, weak: np.ndarray, strong: np.ndarray, quality: float, threshold: float) -> np.ndarray:
    """quality * strong - routed, prompt by prompt, moved from -1..quality to 0..1; shape (n,).

    The routed answers keep `quality` exactly when the mean of this is at most 1 / (1 + quality), which is what a loss
    of 0 becomes.
    """
    routed = np.where(scores >= threshold, strong, weak)
    return (quality * strong - routed + 1) / (1 + quality)


def p_value(loss: np.ndarray, quality: float, confidence: float) -> float:
    """At most p with a probability of at most p, whatever the distribution, where quality is not kept in the mean.

    Args:
        loss: of independent prompts in random order, as `losses` gives them, shape (n,).
        quality: share of the superior model's quality.
        confidence: what the bets are tuned for; the p-value is valid for any.
    """
    bound = 1 / (1 + quality)
    before = np.arange(1, len(loss) + 1)
    mean = (0.5 + np.cumsum(loss)) / (before + 1)
    variance = (0.25 + np.cumsum((loss - mean) ** 2)) / (before + 1)
    variance = np.concatenate([[0.25], variance[:-1]])  # a bet may know the prompts before it only
    bets = bet_sizes(variance, len(loss), bound, confidence)
    log_wealth = np.cumsum(np.log1p(bets * (bound - loss)))
    return float(np.exp(-max(0.0, log_wealth.max(initial=0.0))))


def bet_sizes(variance, n: int, bound: float, confidence: float):
    """What to bet on each of n prompts: the more, the less the losses vary, and never everything."""
    return np.minimum(np.sqrt(-2 * np.log(1 - confidence) / (n * variance)), MAX_BET / (1 - bound))


def outcomes_needed(
    scores: np.ndarray, weak: np.ndarray, strong: np.ndarray, quality: float, confidence: float
) -> int | None:
    """About how many outcomes like these it takes to guarantee a threshold that is worth having; None: no number."""
    most, bound = 0.0, 1 / (1 + quality)
    for threshold in THRESHOLDS:
        below = np.mean(scores < threshold)
        loss = losses(scores, weak, strong, quality, threshold)
        most = max(most, outcomes_to_pass(loss, bound, confidence))  # all thresholds before it must have passed
        if most > MAX_OUTCOMES:
            return None
        if below >= MIN_INFERIOR_SHARE:
            return int(float(f"{most:.1e}"))
    return None


def outcomes_to_pass(loss: np.ndarray, bound: float, confidence: float) -> float:
    """The number of outcomes with such losses at which the wealth is expected to suffice; infinite where never."""
    goal, number = -np.log(1 - confidence), 10.0
    while number <= 2 * MAX_OUTCOMES:
        bet = bet_sizes(max(loss.var(), 1e-9), int(number), bound, confidence)
        if number * np.mean(np.log1p(bet * (bound - loss))) >= goal:
            return number
        number *= 1.1
    return np.inf
