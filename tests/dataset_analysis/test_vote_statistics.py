"""Intervals of a ratio, the bootstrap over questions, split halves."""

import numpy as np
import pytest

from dataset_analysis.vote_statistics import (
    Estimate,
    beta_interval,
    bootstrap,
    pooled,
    probability_below,
    spearman,
    spearman_brown,
    split_half,
)


def test_beta_interval_against_published_values():
    # Brown, Cai and DasGupta (2001), table 5: Jeffreys' interval for n = 10.
    low, high = beta_interval(np.array([0, 1, 2, 5, 10]), np.full(5, 10))
    assert low == pytest.approx([0, 0.011, 0.044, 0.224, 0.783], abs=6e-4)
    assert high == pytest.approx([0.217, 0.381, 0.503, 0.776, 1], abs=6e-4)


def test_probability_below_agrees_with_the_interval():
    wins, votes = np.array([3.5]), np.array([20])
    low, high = beta_interval(wins, votes)
    assert probability_below(low[0], wins, votes) == pytest.approx(0.025)
    assert probability_below(high[0], wins, votes) == pytest.approx(0.975)


def test_spearman_with_ties():
    a, b = np.array([1, 2, 2, 4]), np.array([10, 30, 20, 40])
    assert spearman(a, b) == pytest.approx(0.9486833)
    assert spearman(np.stack([a, -a]), np.stack([b, b])) == pytest.approx([0.9486833, -0.9486833])
    assert np.isnan(spearman(np.ones(3), np.arange(3)))


def test_bootstrap():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = bootstrap(np.mean, values)
    assert found.value == values.mean()
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.04)
    assert bootstrap(pooled, np.array([1.0, 0.0]), np.array([1, 3])).value == 0.25
    assert f"{Estimate(0.5, 0.25, 0.75):.2f}" == "0.50 [0.25, 0.75]"


def test_split_half_finds_order_noise_and_votes_that_belong_together():
    random = np.random.default_rng(0)
    question = np.repeat(np.arange(60), 8)
    own = np.arange(480)
    certain, stepped = split_half(question, own, question / 60)
    assert (certain.value, stepped.value) == pytest.approx((1, 1))
    noise, _ = split_half(question, own, random.random(480))
    assert noise.low < 0 < noise.high
    # Four judges give the same noise twice: votes apart look reliable, judges apart don't.
    judge, score = np.tile([0, 0, 1, 1, 2, 2, 3, 3], 60), np.repeat(random.random(240), 2)
    assert split_half(question, own, score)[0].value > 0.3
    assert split_half(question, judge, score)[0].value < 0.15
    assert spearman_brown(np.array([0.5, -0.2])) == pytest.approx([2 / 3, 0])
