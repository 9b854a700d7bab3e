"""Several kinds together, what routing brings at a threshold, and the buckets of a report."""

import numpy as np
import pytest

from finetuning_model.evaluation import figures
from finetuning_model.evaluation.baselines import PROMPT_LENGTH, RANDOM, ROUTER
from finetuning_model.evaluation.eval_sets import outcome_set, pooled_set
from finetuning_model.evaluation.metrics import apgr
from router_data import Outcome, Prices


def eval_set(name: str, n: int, skill: float, seed: int = 0):
    """Outcomes of which `skill` says how much of the gain the router's scores know; prompts grow with their number."""
    draw = np.random.default_rng(seed)
    weak = (draw.random(n) < 0.5).astype(float)
    rows = [Outcome(prompt="x" * (i + 1), weak_score=w, strong_score=1.0, group="all") for i, w in enumerate(weak)]
    found = outcome_set(name, rows)
    router = np.clip(0.5 + skill * (0.5 - weak) + draw.normal(0, 0.2, n), 0, 1)
    found.scores = {ROUTER: router, RANDOM: draw.random(n), PROMPT_LENGTH: np.arange(1.0, n + 1)}
    return found


def test_routing_is_judged_beside_the_simple_ways_to_spend_as_much():
    mine = eval_set("mine", 200, skill=0.5)
    router, weak, strong = mine.scores[ROUTER], mine.weak, mine.strong
    found = figures.judge_routing(mine, 0.5, Prices(inferior=1, superior=11, tokens_per_prompt=1000))
    sent = router >= 0.5
    share, quality = sent.mean(), np.where(sent, strong, weak).sum() / strong.sum()
    assert found["superior_share"].value == pytest.approx(share)
    assert found["quality"].value == pytest.approx(quality)
    alone = weak.sum() / strong.sum()
    assert found["quality_of"]["always inferior"].value == pytest.approx(alone)
    assert found["quality_of"]["always superior"].value == 1
    assert found["quality_of"]["random"].value == pytest.approx(alone + share * (1 - alone))
    longest = np.arange(200) >= 200 - sent.sum()
    assert found["quality_of"]["prompt length"].value == pytest.approx(np.where(longest, strong, weak).mean())
    for name, figure in found["quality_of"].items():
        lead = found["lead_over"][name]
        assert lead.value == pytest.approx(quality - figure.value) and lead.low <= lead.value <= lead.high
    assert found["lead_over"]["random"].low > 0
    assert found["cost"] == pytest.approx(1 + 10 * share) and found["cost_of_superior"] == 11


def test_kinds_are_judged_pooled_in_the_mean_and_at_their_worst_by_every_scorer():
    sets = [eval_set("good", 300, 0.5, 1), eval_set("useless", 200, 0.0, 2), eval_set("bad", 100, -0.3, 3)]
    pooled = pooled_set(sets, seed=0)
    found = figures.judge_kinds(sets, pooled, 0.5)
    ones = [np.ones((1, len(s.prompts))) for s in sets]
    own = [apgr(s.gain)(s.scores[ROUTER], one)[0] for s, one in zip(sets, ones, strict=True)]
    assert found["mean"][ROUTER]["figure"].value == pytest.approx(np.mean(own))
    assert (found["worst"][ROUTER]["kind"], found["worst"][ROUTER]["figure"].value) == ("bad", pytest.approx(min(own)))
    assert found["rows"] == 600 and set(found["mean"]) == {ROUTER, RANDOM, PROMPT_LENGTH}
    share = np.mean(pooled.scores[ROUTER] >= 0.5)
    assert set(found["pooled"]) == {"APGR", f"PGR at {share:.0%} superior calls"}
    for scorers in (*found["pooled"].values(), found["mean"], found["worst"]):
        assert scorers[ROUTER]["difference"] is None
        for entry in scorers.values():
            assert entry["figure"].low <= entry["figure"].value <= entry["figure"].high
        lead = scorers[RANDOM]["difference"]
        assert lead.value == pytest.approx(scorers[ROUTER]["figure"].value - scorers[RANDOM]["figure"].value)


def test_the_mean_over_kinds_counts_every_kind_alike_and_is_surer_than_one():
    sets = [eval_set(f"kind {i}", 100, 0.2, seed=i) for i in range(8)]
    found = figures.judge_kinds(sets, pooled_set(sets, seed=0), 0.5)
    mean, worst = found["mean"][ROUTER]["figure"], found["worst"][ROUTER]["figure"]
    assert mean.high - mean.low < 0.6 * (worst.high - worst.low)


def test_without_a_gap_there_is_no_curve_but_what_routing_brings_is_still_said():
    same = eval_set("same", 50, 0.0)
    same.weak, same.strong = np.ones(50), np.ones(50)
    report = figures.judge_set(same, 0.5, None)
    assert "curve" not in report and report["headline"]["metric"] == "AUROC"
    assert report["at_threshold"]["quality"].value == 1


def test_misses_are_the_wrong_decisions_farthest_from_the_label_first():
    mine = eval_set("mine", 60, 0.1)
    report = figures.judge_set(mine, 0.5, None)
    distances = [abs(miss["router_score"] - (miss["label"] == "ROUTE_TO_SUPERIOR")) for miss in report["misses"]]
    assert distances == sorted(distances, reverse=True) and min(distances) >= 0.5
    wrong = (mine.scores[ROUTER] >= 0.5) != (mine.gain > 0)
    assert len(distances) == min(figures.MAX_MISSES, wrong.sum())


def test_buckets_beyond_the_largest_are_pooled():
    names = [f"c{i % 40}" for i in range(400)]
    router, labels = np.linspace(0, 1, 400), np.tile([0.0, 1.0], 200)
    found = figures.buckets(names, router, labels, 0.5)
    assert len(found) == figures.MAX_BUCKETS and sum(bucket["rows"] for bucket in found) == 400
    assert found[0]["name"] == f"other ({40 - figures.MAX_BUCKETS + 1} categories)"
    assert found[1]["constant_accuracy"] == max(found[1]["superior_share"], 1 - found[1]["superior_share"])


@pytest.mark.parametrize(("length", "bucket"), [(1, "1 to 60"), (60, "1 to 60"), (61, "61 to 200"), (601, "over 600")])
def test_lengths_have_their_buckets(length, bucket):
    assert figures.length_bucket("x" * length) == bucket
