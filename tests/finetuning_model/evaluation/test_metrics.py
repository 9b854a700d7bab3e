"""The metrics against naive definitions, their resamples, and calibration."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from finetuning_model.evaluation import metrics as m


@pytest.fixture
def drawn():
    """Forty prompts with many equal scores, labels, gains, and five resamples."""
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 9, 40) / 8
    y = (draw.random(40) < 0.4 + 0.3 * scores).astype(float)
    gain = draw.choice([-1.0, 0.0, 0.0, 0.5, 1.0, 1.0], 40)
    return scores, y, gain, m.bootstrap_weights(40, 5, seed=3)


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(values, weights.astype(int))


def test_ranking_metrics_are_scikit_learns_with_ties_and_on_every_resample(drawn):
    scores, y, _, draws = drawn
    auroc, precision = m.auroc(y)(scores, draws), m.average_precision(y)(scores, draws)
    for i, weights in enumerate(draws):
        rows = repeated(np.arange(40), weights)
        assert auroc[i] == pytest.approx(sk.roc_auc_score(y[rows], scores[rows]))
        assert precision[i] == pytest.approx(sk.average_precision_score(y[rows], scores[rows]))


def test_probability_metrics_are_the_naive_ones(drawn):
    scores, y, _, draws = drawn
    for weights in draws:
        rows = repeated(np.arange(40), weights)
        p, truth = scores[rows], y[rows]
        one = weights[None]
        assert m.accuracy(y, 0.5)(scores, one)[0] == pytest.approx(sk.accuracy_score(truth, p >= 0.5))
        assert m.brier(y)(scores, one)[0] == pytest.approx(sk.brier_score_loss(truth, p))
        error = 0.0
        for k in range(m.BINS):
            member = (p >= k / m.BINS) & ((p < (k + 1) / m.BINS) | (k == m.BINS - 1))
            if member.any():
                error += member.mean() * abs(p[member].mean() - truth[member].mean())
        assert m.expected_calibration_error(y)(scores, one)[0] == pytest.approx(error)


def test_spearman_is_scipys(drawn):
    scores, _, gain, draws = drawn
    rows = repeated(np.arange(40), draws[2])
    expected = spearmanr(scores[rows], gain[rows]).statistic
    assert m.spearman(gain)(scores, draws[2:3])[0] == pytest.approx(expected)


def pgr_in_order(gain: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(gain)]) / gain.sum()


def test_apgr_by_hand():
    scores, one = np.array([4.0, 3, 2, 1]), np.ones((1, 4))
    assert m.apgr(np.array([1.0, 1, 0, 0]))(scores, one)[0] == pytest.approx((0 + 0.5 + 1 + 1 + 1) / 5)
    assert m.apgr(np.array([0.0, 0, 1, 1]))(scores, one)[0] == pytest.approx((0 + 0 + 0 + 0.5 + 1) / 5)
    assert m.apgr(np.array([2.0, -1, 0, 1]))(scores, one)[0] == pytest.approx((0 + 1 + 0.5 + 0.5 + 1) / 5)
    assert m.apgr(np.array([2.0, -1, 0, 1]))(np.zeros(4), one)[0] == pytest.approx(0.5)


def test_apgr_with_ties_is_the_mean_over_all_their_orders():
    scores, gain = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0.0, 1, -1, 1, 1])
    weights = np.array([1.0, 2, 0, 1, 1])  # a resample: row 1 twice, row 2 never
    for draw in (np.ones(5), weights):
        rows = repeated(np.arange(5), draw)
        orders = [
            pgr_in_order(gain[list(order)]).mean()
            for order in itertools.permutations(rows)
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        assert m.apgr(gain)(scores, draw[None])[0] == pytest.approx(np.mean(orders))


def test_cpt_and_pgr_follow_the_curve_with_ties(drawn):
    scores, _, gain, draws = drawn
    calls, recovered = m.quality_curve(scores, gain)
    assert (calls[0], recovered[0], calls[-1], recovered[-1]) == (0, 0, 1, 1)
    one = np.ones((1, 40))
    for share in (0.0, 0.2, 0.37, 0.9, 1.0):
        assert m.pgr(gain, share)(scores, one)[0] == pytest.approx(np.interp(share, calls, recovered))
    for share in (0.5, 0.8):
        k = np.flatnonzero(recovered >= share)[0]
        inside = (share - recovered[k - 1]) / (recovered[k] - recovered[k - 1])
        expected = calls[k - 1] + inside * (calls[k] - calls[k - 1])
        assert m.cpt(gain, share)(scores, one)[0] == pytest.approx(expected)
    rows = repeated(np.arange(40), draws[0])
    of_draw = m.pgr(gain, 0.3)(scores, draws[:1])[0]
    assert of_draw == pytest.approx(m.pgr(gain[rows], 0.3)(scores[rows], np.ones((1, 40)))[0])


def test_the_calls_may_differ_from_resample_to_resample(drawn):
    scores, _, gain, draws = drawn
    shares = np.linspace(0, 1, 5)
    together = m.gain_of_calls(gain, scores, draws, shares)
    apart = [m.gain_of_calls(gain, scores, draws[i : i + 1], share)[0] for i, share in enumerate(shares)]
    assert together == pytest.approx(apart) and together[0] == 0
    assert together[-1] == pytest.approx(draws[-1] @ gain)


def test_no_ranking_beats_the_oracle_and_random_is_one_half(drawn):
    _, _, gain, _ = drawn
    one = np.ones((1, 40))
    oracle = m.apgr(gain)(gain, one)[0]
    randoms = [m.apgr(gain)(np.random.default_rng(i).random(40), one)[0] for i in range(400)]
    assert oracle > max(randoms)
    assert np.mean(randoms) == pytest.approx(0.5, abs=0.03)


def test_what_is_undefined_is_no_number_null_in_json_and_a_dash_in_a_table():
    one = np.ones((1, 3))
    assert np.isnan(m.auroc(np.ones(3))(np.arange(3.0), one)[0])
    assert np.isnan(m.apgr(np.zeros(3))(np.arange(3.0), one)[0])
    figure = m.estimate(m.auroc(np.ones(3)), np.arange(3.0), m.bootstrap_weights(3, 10))
    assert np.isnan(figure.value) and np.isnan(figure.low) and str(figure) == "–"
    assert m.as_json({"a": [figure, np.float64(1), np.int64(2)]}) == {
        "a": [{"value": None, "low": None, "high": None}, 1.0, 2]
    }
    assert m.Estimate(**m.as_json(figure)).show() == "–"


def test_an_estimate_shows_its_interval_as_a_figure_a_percentage_or_with_signs():
    estimate = m.Estimate(0.0312, -0.01, 0.0705)
    assert str(estimate) == "0.031 [-0.010, 0.070]"
    assert estimate.show(percent=True, signed=True) == "+3.1% [-1.0%, +7.0%]"


def test_resamples_draw_n_prompts_and_repeat_by_seed():
    draws = m.bootstrap_weights(30, 7)
    assert draws.shape == (7, 30) and (draws.sum(1) == 30).all()
    assert (draws == m.bootstrap_weights(30, 7)).all() and (draws != m.bootstrap_weights(30, 7, seed=1)).any()


def test_comparing_scorers_gives_their_estimates_and_paired_differences(drawn):
    scores, y, _, _ = drawn
    draws = m.bootstrap_weights(40, 200)
    metric = m.auroc(y)
    compared = m.compare_scorers(m.auroc(y), {"a": scores, "b": -scores}, draws)
    assert compared["b"]["figure"] == m.estimate(m.auroc(y), -scores, draws)
    paired = metric(scores, draws) - metric(-scores, draws)
    difference = compared["a"]["figure"].value - compared["b"]["figure"].value
    assert compared["b"]["difference"] == m.Estimate(difference, *np.percentile(paired, [2.5, 97.5]))
    assert compared["a"]["difference"] is None
    same = m.compare_scorers(m.auroc(y), {"a": scores, "b": scores.copy()}, draws)["b"]["difference"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_temperature_and_bias_that_made_the_labels_are_found():
    draw = np.random.default_rng(0)
    margin = draw.normal(size=20_000) * 4
    y = (draw.random(20_000) < 1 / (1 + np.exp(-(margin - 1.5) / 2.5))).astype(float)
    assert m.fit_temperature(margin, y) == pytest.approx((2.5, -1.5), rel=0.05)


def test_the_base_rate_sets_the_mean_probability():
    draw = np.random.default_rng(0)
    margin = draw.normal(size=150)
    y = (draw.random(150) < 0.3).astype(float)
    temperature, bias = m.fit_temperature(margin, y, base_rate=0.17)
    assert np.mean(1 / (1 + np.exp(-(margin + bias) / temperature))) == pytest.approx(0.17, abs=1e-6)
    temperature, bias = m.fit_temperature(margin, np.zeros(150))  # one label only: still a finite answer
    assert np.isfinite([temperature, bias]).all()


def test_uncalibrating_undoes_temperature_and_bias():
    margin = np.linspace(-5, 5, 11)
    calibrated = 1 / (1 + np.exp(-(margin + 0.7) / 0.4))
    assert m.uncalibrated(calibrated, 0.4, 0.7) == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-4)
    assert np.isfinite(m.uncalibrated(np.array([0.0, 1.0]), 0.4, 0.7)).all()
