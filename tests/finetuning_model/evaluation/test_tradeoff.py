"""What every threshold brings, and the thresholds that meet a target."""

import numpy as np
import pytest

from finetuning_model.evaluation import tradeoff as t
from finetuning_model.evaluation.metrics import bootstrap_weights
from router_data import InputError, LabelledPrompt, Prices, label_of

PRICES = Prices(inferior=1.0, superior=11.0, tokens_per_prompt=1000)  # $1 and $11 for 1,000 prompts


@pytest.fixture
def graded():
    draw = np.random.default_rng(5)
    scores = np.round(0.98 * draw.random(200), 2)
    return scores, np.clip(scores + draw.normal(0, 0.15, 200), 0, 1)


def by_soft_label(scores, soft_labels):
    return t.tradeoff(scores, 1 - soft_labels, np.ones(len(scores)))


def quality_at(threshold: float, scores, inferior, superior) -> float:
    return np.where(scores >= threshold, superior, inferior).sum() / superior.sum()


def test_every_point_of_the_tradeoff_is_what_its_threshold_does(graded):
    scores, soft_labels = graded
    superior = np.full(200, 0.9)
    curve = t.tradeoff(scores, 1 - soft_labels, superior)
    assert len(curve.thresholds) == len(np.unique(scores)) + 1
    for threshold, share, quality in zip(curve.thresholds, curve.superior_share, curve.quality, strict=True):
        point = t.tradeoff_at(threshold, scores, 1 - soft_labels, superior)
        assert point.superior_share[0] == pytest.approx(share) == np.mean(scores >= threshold)
        assert point.quality[0] == pytest.approx(quality)
        assert quality_at(threshold, scores, 1 - soft_labels, superior) == pytest.approx(quality)


def test_the_table_of_the_page_holds_what_each_threshold_brings_with_its_interval(graded):
    scores, soft_labels = graded
    table = t.tradeoff_table(scores, 1 - soft_labels, np.ones(200), "200 prompts")
    i = table.at(0.4)
    assert table.thresholds[i] == 0.4 and table.rows == 200 and len(table.quality) == len(table.thresholds)
    assert table.quality[i] == pytest.approx(quality_at(0.4, scores, 1 - soft_labels, np.ones(200)))
    assert table.superior_share[i] == pytest.approx(np.mean(scores >= 0.4))
    estimate = t.quality_estimate(scores, 0.4, 1 - soft_labels, np.ones(200), bootstrap_weights(200))
    assert (table.quality_low[i], table.quality_high[i]) == (estimate.low, estimate.high)
    assert table.inferior_quality == pytest.approx(1 - soft_labels.mean())


@pytest.mark.parametrize("percent", [0, 5, 20, 33.3, 100])
def test_a_budget_of_calls_is_kept_and_spent(graded, percent):
    scores, soft_labels = graded
    threshold = t.choose(by_soft_label(scores, soft_labels), t.at_most_superior(percent))
    share = np.mean(scores >= threshold)
    assert share <= percent / 100 + 1e-9
    below = scores[scores < threshold]
    assert not len(below) or np.mean(scores >= below.max()) > percent / 100


@pytest.mark.parametrize("percent", [60, 90, 99, 100])
def test_a_quality_is_kept_at_the_least_cost(graded, percent):
    scores, soft_labels = graded
    curve = by_soft_label(scores, soft_labels)
    threshold = t.choose(curve, t.at_least_quality(percent))
    ones = np.ones(200)
    assert quality_at(threshold, scores, 1 - soft_labels, ones) >= percent / 100 - 1e-9
    dearer = [other for other in curve.thresholds if other > threshold]
    assert all(quality_at(other, scores, 1 - soft_labels, ones) < percent / 100 for other in dearer)


def test_a_budget_of_money_is_the_share_of_calls_it_buys(graded):
    curve = by_soft_label(*graded)
    assert t.choose(curve, t.at_most_cost(3.0, PRICES)) == t.choose(curve, t.at_most_superior(20))


def test_targets_that_cannot_be_met_name_the_nearest_that_can(graded):
    curve = by_soft_label(*graded)
    with pytest.raises(InputError, match=r"nearest that can is \$1 per 1,000"):
        t.choose(curve, t.at_most_cost(0.5, PRICES))
    with pytest.raises(InputError, match=r"nearest that can is 100.0% of the superior model's quality"):
        t.choose(curve, t.at_least_quality(101))
    budget, quality = t.at_most_superior(10), t.at_least_quality(99)
    with pytest.raises(InputError, match="at once") as refused:
        t.choose(curve, budget, quality)
    best = quality_at(t.choose(curve, budget), graded[0], 1 - graded[1], np.ones(200))
    assert f"goes with {best:.1%} of the superior model's quality" in str(refused.value)


def test_two_targets_that_can_be_met_at_once_are(graded):
    curve = by_soft_label(*graded)
    both = t.choose(curve, t.at_most_superior(60), t.at_least_quality(70))
    assert both == t.choose(curve, t.at_least_quality(70))
    assert np.mean(graded[0] >= both) <= 0.6


def test_equal_scores_stay_together_and_a_score_of_one_cannot_be_kept_away():
    curve = by_soft_label(np.array([1.0, 1.0, 0.3]), np.array([1.0, 1.0, 0.0]))
    assert curve.superior_share.tolist() == pytest.approx([2 / 3, 1])
    with pytest.raises(InputError, match="66.7%"):
        t.choose(curve, t.at_most_superior(50))
    with pytest.raises(InputError, match="not positive"):
        t.tradeoff(np.array([0.5]), np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="price_superior"):
        t.at_most_cost(1, Prices(0.5, 0.5, 800))


def labelled(soft_label: float, **more) -> LabelledPrompt:
    return LabelledPrompt(prompt="p", label=label_of(soft_label), superior_probability=soft_label, **more)


def test_the_checkpoints_thresholds_meet_their_names(graded):
    scores, soft_labels = graded
    thresholds = t.thresholds_for_checkpoint(scores, [labelled(soft_label) for soft_label in soft_labels])
    assert len(thresholds) == 7 and all(type(value) is float and 0 <= value <= 1 for value in thresholds.values())
    assert np.mean(scores >= thresholds["at_most_20_percent_superior"]) <= 0.2
    threshold = thresholds["at_least_95_percent_quality"]
    assert quality_at(threshold, scores, 1 - soft_labels, np.ones(200)) >= 0.95


def test_qualities_are_the_labellers_two_where_every_row_has_them():
    both = [
        labelled(0.8, inferior_quality=0.1, superior_quality=0.9),
        labelled(0, inferior_quality=1, superior_quality=1),
    ]
    inferior, superior, source = t.qualities(both)
    assert inferior.tolist() == [0.1, 1] and superior.tolist() == [0.9, 1] and "two qualities" in source
    inferior, superior, source = t.qualities([*both, labelled(0.3)])
    assert inferior == pytest.approx([0.2, 1, 0.7]) and superior.tolist() == [1, 1, 1] and "soft labels" in source


def test_a_name_says_with_which_confidence_a_quality_is_kept():
    assert t.at_least_quality(95).key == "at_least_95_percent_quality"
    sure = t.at_least_quality(97.5, 90)
    assert sure.key == "at_least_97.5_percent_quality_with_90_percent_confidence"
    assert sure.text == "at least 97.5% of the superior model's quality with 90% confidence"
