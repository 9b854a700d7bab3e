"""The two sentences for whoever pays the bill, in every case there is."""

from pathlib import Path

import pytest

from finetuning_model.evaluation.metrics import Estimate, as_json
from finetuning_model.evaluation.verdict import judge_verdict, outcomes_to_show
from router_model import Verdict


def report(name="mine", share=0.4, inferior=0.8, lead=(0.03, 0.01, 0.05), over_length=(0.02, 0.01, 0.03), **more):
    def estimate(low, high):
        return Estimate((low + high) / 2, low, high)

    return {
        "name": name,
        "kind": "outcomes of two models",
        "rows": 500,
        "at_threshold": {
            "superior_share": estimate(share - 0.02, share + 0.02),
            "quality": estimate(0.94, 0.96),
            "quality_of": {
                "always inferior": estimate(inferior - 0.05, inferior + 0.05),
                "always superior": estimate(1, 1),
                "random": estimate(0.91, 0.93),
                "prompt length": estimate(0.92, 0.94),
            },
            "lead_over": {"random": Estimate(*lead), "prompt length": Estimate(*over_length)},
            **more,
        },
    }


def verdict(*sets, pooled=None):
    evaluation = as_json(
        {"sets": list(sets), "pooled": pooled, "threshold": 0.35, "evaluated_at": "2026-11-29T12:00:00+00:00"}
    )
    return judge_verdict(evaluation, ["my outcomes.jsonl"], Path("models/x-save"))


def test_a_router_that_pays_says_what_it_saves_for_what_quality_and_beside_what():
    found = verdict(report(cost=4.0, cost_of_superior=10.0))
    first, second = found["sentences"]
    assert "At the threshold 0.35 the router sends 40% of the prompts to the superior model" in first
    assert "costs $4 instead of $10 for 1,000 prompts (60% less)" in first
    assert "keep 95.0% of its quality (95% interval 94.0% to 96.0%)" in first
    assert "inferior model alone keeps 80.0%, as many prompts sent at random 92.0%, the longest prompts 93.0%" in first
    assert second.startswith("Routing pays: this is better than sending 40% of the prompts at random (+3.0 points")
    assert found["pays"] is True and "prompt length" not in second and "longest" not in second
    assert found["next"].startswith("python3 finetuning_model/choose_threshold.py --model_save_dir models/x-save")
    assert "'my outcomes.jsonl' --at_least_quality 95 --confidence 95 --save" in found["next"]
    assert Verdict(**found).quality_low == pytest.approx(0.94)


def test_nothing_is_claimed_of_outcomes_that_were_trained_on():
    assert verdict(report() | {"near_duplicates": 249})["pays"] is True
    found = verdict(report() | {"near_duplicates": 250})
    assert found["pays"] is None and "250 of the 500 outcomes are near duplicates" in found["sentences"][0]
    assert "not among them" in found["sentences"][1] and "label_outcomes.py" in found["next"]


def test_without_prices_it_says_how_many_calls_are_saved():
    assert "60% of the calls to it are saved" in verdict(report())["sentences"][0]


def test_a_lead_that_is_not_shown_is_no_reason_to_route():
    found = verdict(report(lead=(0.01, -0.01, 0.03)))
    assert found["pays"] is False and "label_outcomes.py" in found["next"]
    assert "not shown to be better than sending 40% of the prompts at random" in found["sentences"][1]
    assert "don't route yet" in found["sentences"][1]
    assert "about 2,000 outcomes would show a lead of this size" in found["sentences"][1]
    assert "no lead is in sight" in verdict(report(lead=(-0.01, -0.03, 0.01)))["sentences"][1]


def test_a_router_that_is_worse_than_chance_is_called_so():
    found = verdict(report(lead=(-0.03, -0.05, -0.01)))
    assert found["pays"] is False and found["sentences"][1].startswith("This is worse than sending 40%")


def test_a_lead_over_chance_alone_is_said_to_be_one():
    found = verdict(report(over_length=(0.0, -0.01, 0.01)))
    assert found["pays"] is True and "not shown to be better than the longest prompts" in found["sentences"][1]


def test_kinds_on_which_it_is_worse_than_chance_are_named():
    bad = report("poems", lead=(-0.03, -0.05, -0.01))
    found = verdict(report(), bad, pooled=report("all kinds pooled"))
    assert found["pays"] is True and "but on poems it is worse than random" in found["sentences"][1]
    assert found["measured_on"].startswith("all kinds pooled: 500 prompts")


def test_where_the_superior_model_is_no_better_there_is_nothing_to_route_for():
    found = verdict(report(inferior=0.97))
    assert found["pays"] is False and "use the inferior model alone" in found["sentences"][1]


def test_a_threshold_that_sends_everything_to_one_model_asks_for_another():
    found = verdict(report(share=0.999, lead=(0, 0, 0)))
    assert found["pays"] is False and "nearly every prompt goes to the superior model" in found["sentences"][1]
    assert "choose_threshold.py" in found["next"]


def test_without_outcomes_nothing_is_claimed():
    found = verdict({"name": "test_part", "kind": "", "rows": 9})
    assert found["pays"] is None and "not measured" in found["sentences"][0] and "label_outcomes.py" in found["next"]


def test_the_number_of_outcomes_grows_with_the_square_of_the_interval():
    assert outcomes_to_show(Estimate(0.01, -0.01, 0.03), 500) == 2000
    assert outcomes_to_show(Estimate(0.01, -0.03, 0.05), 500) == 8000
    assert outcomes_to_show(Estimate(0.0001, -0.03, 0.03), 500) is None
