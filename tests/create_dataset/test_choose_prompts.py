"""Which prompts are asked about: unlike one another, near the threshold, and as many as were wanted."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from create_dataset import label_outcomes
from create_dataset.choose_prompts import PromptList, choose, choose_among, distances_from_threshold
from create_dataset.prompt_sources import Prompt
from router_data import InputError, dedup_key

KINDS = ("translate this sentence into french", "sort a list in python quickly", "prove the sum of angles")


def texts_of_kinds(counts: tuple[int, ...]) -> list[str]:
    return [f"{kind} item{i}" for kind, count in zip(KINDS, counts, strict=True) for i in range(count)]


def write_log(rows: list[dict]) -> None:
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(**more) -> Namespace:
    fixed = label_outcomes.parse_args(["--dataset", "log.jsonl", "--choose", "3"])
    return Namespace(**{**vars(fixed), **more})


def test_each_kind_has_its_prompt_however_rare_it_is():
    texts = texts_of_kinds((60, 30, 5))
    chosen = choose_among(texts, np.full(len(texts), np.nan), 3, seed=0)
    assert {texts[i].rpartition(" ")[0] for i in chosen} == set(KINDS)
    assert chosen == choose_among(texts, np.full(len(texts), np.nan), 3, seed=0)


def test_prompts_far_from_the_threshold_are_left_out():
    texts = texts_of_kinds((40, 40, 0))
    distance = np.array([0.45] * 40 + [0.02] * 40)
    assert all(i >= 40 for i in choose_among(texts, distance, 10, seed=0))


def test_as_many_as_wanted_each_once_even_where_all_are_alike():
    chosen = choose_among(["the same words"] * 20, np.full(20, np.nan), 7, seed=0)
    assert len(set(chosen)) == 7


def test_the_log_gives_scores_and_thresholds():
    write_log(
        [
            {"prompt": "near", "router_score": 0.31, "threshold": 0.3},
            {"prompt": "no threshold", "router_score": 0.9},
            {"prompt": "not scored", "router_score": None, "threshold": 0.3},
        ]
    )
    found = distances_from_threshold(["log.jsonl"], None)
    assert found == pytest.approx({dedup_key("near"): 0.01, dedup_key("no threshold"): 0.4})


def test_from_a_decision_log_and_at_random(capsys):
    kinds = [" ".join(f"{word}{i * 7919 % 9973}" for word in ("why", "does", "it")) for i in range(90)]
    write_log([{"prompt": text, "router_score": 0.5, "threshold": 0.5} for text in kinds])
    chosen = choose(arguments(choose=5))
    assert len(chosen) == 5 and {prompt.text for prompt in chosen} <= set(kinds)
    assert "chose 5 of" in capsys.readouterr().out
    at_random = choose(arguments(choose=5, choose_at_random=True))
    assert len(at_random) == 5 and "chose" not in capsys.readouterr().out


def test_what_has_an_outcome_is_left_out():
    prompts = PromptList(Prompt(text, "s", "1") for text in ("a", "b"))
    prompts.leave_out({dedup_key("A")})
    assert [prompt.text for prompt in prompts] == ["b"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--choose", "0"], "at least 1"), (["--choose_at_random"], "goes with --choose")],
)
def test_bad_choices_are_named(flags, says):
    with pytest.raises(InputError, match=says):
        label_outcomes.parse_args(flags)
