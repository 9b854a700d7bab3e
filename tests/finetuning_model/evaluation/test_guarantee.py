"""The guaranteed threshold: how often it fails, what it refuses, and that few outcomes are not enough."""

import numpy as np
import pytest

from finetuning_model.evaluation import guarantee
from finetuning_model.evaluation.tradeoff import at_least_quality, choose, tradeoff
from router_data import InputError


def outcomes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, and qualities of which the inferior model's falls as the score rises; some prompts beat both models."""
    draw = np.random.default_rng(seed)
    scores = draw.random(n)
    strong = (draw.random(n) < 0.9).astype(float)
    weak = np.where(strong == 1, draw.random(n) > 0.3 * scores, draw.random(n) < 0.1).astype(float)
    return scores, weak, strong


@pytest.fixture(scope="module")
def population():
    return outcomes(200_000, seed=0)


def kept(population, threshold: float) -> float:
    scores, weak, strong = population
    return np.where(scores >= threshold, strong, weak).mean() / strong.mean()


@pytest.mark.slow
def test_the_promise_is_broken_no_more_often_than_it_says(population):
    draws, broken, broken_without = 100, 0, 0
    for seed in range(1, draws + 1):
        sample = outcomes(200, seed)
        threshold = guarantee.guaranteed_threshold(*sample, quality=0.95, confidence=0.9)
        broken += kept(population, threshold) < 0.95
        broken_without += kept(population, choose(tradeoff(*sample), at_least_quality(95))) < 0.95
    assert broken <= 0.1 * draws + 2 * np.sqrt(0.09 * draws)
    assert broken_without > 0.3 * draws  # the point estimate breaks it about every second time


def test_more_outcomes_and_less_confidence_dare_more():
    few, many = outcomes(200, seed=3), outcomes(2000, seed=3)
    careful = guarantee.guaranteed_threshold(*few, quality=0.95, confidence=0.99)
    assert careful <= guarantee.guaranteed_threshold(*few, quality=0.95, confidence=0.8)
    bold = guarantee.guaranteed_threshold(*many, quality=0.95, confidence=0.99)
    assert careful < bold <= choose(tradeoff(*many), at_least_quality(95))


def test_the_p_value_is_small_no_more_often_than_it_may_be():
    losses = np.random.default_rng(0).random((400, 200)) < 1 / 1.9  # the bound itself: quality is just not kept
    p_values = np.array([guarantee.p_value(row.astype(float), 0.9, 0.95) for row in losses])
    assert np.mean(p_values <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 / 400)


def test_too_few_outcomes_are_refused_with_the_number_it_takes():
    sample = outcomes(40, seed=1)
    with pytest.raises(
        InputError, match=r"40 outcomes are too few to guarantee 95% .* about [\d,]+ like these"
    ) as error:
        guarantee.guaranteed_threshold(*sample, quality=0.95, confidence=0.95)
    needed = guarantee.outcomes_needed(*sample, quality=0.95, confidence=0.95)
    assert needed and f"{needed:,}" in str(error.value) and 60 <= needed <= 5000
    more = outcomes(3 * needed, seed=2)
    assert guarantee.guaranteed_threshold(*more, quality=0.95, confidence=0.95) > 0.1


def test_where_the_router_cannot_tell_the_prompts_apart_no_number_of_outcomes_helps():
    _, weak, strong = outcomes(500, seed=4)
    with pytest.raises(InputError, match="no number of outcomes like these"):
        guarantee.guaranteed_threshold(np.full(500, 0.5), weak, strong, quality=0.95, confidence=0.95)


def test_grades_outside_0_to_1_are_refused():
    with pytest.raises(InputError, match="within 0..1"):
        guarantee.guaranteed_threshold(np.array([0.5]), np.array([3.0]), np.array([8.0]), 0.95, 0.95)
