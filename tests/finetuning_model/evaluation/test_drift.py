"""A decision log beside the validation part: other traffic is found, the same is not, and few rows say nothing."""

import json
import shlex

import numpy as np
import pytest

from finetuning_model import choose_threshold
from finetuning_model.evaluation import drift
from finetuning_model.evaluation.drift import LoggedScores, judge_drift, read_log
from router_data import InputError, write_rows


def draws(n: int, a: float, b: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(a, b, n)


@pytest.mark.slow
def test_traffic_of_the_same_kind_is_not_called_another_one():
    validation = draws(300, 2, 3)
    found = [judge_drift(LoggedScores(draws(400, 2, 3, seed), {}), validation, 0.5)["drifted"] for seed in range(1, 41)]
    assert found.count(False) >= 39


def test_other_traffic_is_found_and_its_share_is_said():
    found = judge_drift(LoggedScores(draws(400, 3, 2, 1), {}), draws(300, 2, 3), 0.5)
    assert found["drifted"] is True
    assert found["superior_share"].low > found["validation_superior_share"].high
    assert found["sentences"][1].startswith("The traffic is another one") and "choose the threshold anew" in str(found)
    command = shlex.split(drift.next_command(found, ["decisions.jsonl"], "models/x-save"))
    assert command[1] == "finetuning_model/choose_threshold.py"
    wanted = choose_threshold.parse_args(command[2:])
    logged_without = drift.next_command(found | {"has_prompts": False}, ["decisions.jsonl"], "models/x-save")
    assert logged_without.endswith("--log_prompts")
    assert wanted.at_most_superior == round(100 * found["validation_superior_share"].value)


@pytest.mark.slow
def test_a_small_difference_in_much_traffic_changes_nothing():
    found = judge_drift(LoggedScores(draws(20_000, 2.1, 3, 1), {}), draws(20_000, 2, 3), 0.5)
    assert found["p_value"] < 0.01 and found["drifted"] is False


def test_few_rows_say_nothing():
    found = judge_drift(LoggedScores(np.full(99, 0.9), {"not scored": 3}), draws(300, 2, 3), 0.5)
    assert found["drifted"] is None and "wait for more traffic" in found["sentences"][1]
    assert "(left out: 3 not scored)" in found["sentences"][0]
    assert "--outcomes" in drift.next_command(found, ["decisions.jsonl"], "x")


def test_only_what_the_checkpoint_scored_counts_and_each_conversation_once(tmp_path):
    log = tmp_path / "decisions.jsonl"
    row = {"time": "2026-11-29T00:00:00", "threshold": 0.5, "router": "mine", "remembered": False}
    rows = [row | {"router_score": 0.1}, row | {"router_score": 0.2}, row | {"router_score": None}]
    rows += [row | {"router_score": 0.9, "router": "earlier"}, row | {"router_score": 0.2, "remembered": True}]
    write_rows(log, rows)
    found = read_log([str(log)], "mine")
    assert found.scores.tolist() == [0.1, 0.2] and not found.has_prompts
    write_rows(tmp_path / "more.jsonl", [row | {"router_score": 0.1, "prompt": "a"}])
    assert read_log([str(tmp_path / "more.jsonl")], "mine").has_prompts
    assert found.left_out == {"not scored": 1, "scored by earlier": 1, "scored at an earlier turn": 1}
    with pytest.raises(InputError, match="no score of other .*3 scored by mine"):
        read_log([str(log)], "other")


def test_a_checkpoint_of_either_form_gives_its_validation_scores(tmp_path):
    path = tmp_path / "validation_predictions.jsonl"
    with pytest.raises(InputError, match="is missing"):
        drift.validation_scores(tmp_path)
    earlier = {"prompt": "a", "label": "ROUTE_TO_INFERIOR", "target": 0.1, "superior_probability": 0.3}
    today = {"prompt": "b", "label": "ROUTE_TO_INFERIOR", "superior_probability": 0.1, "router_score": 0.4}
    path.write_text(f"{json.dumps(earlier)}\n{json.dumps(today)}\n")
    assert drift.validation_scores(tmp_path).tolist() == [0.3, 0.4]
