"""Which prompts are asked about: spread over the router's scores, and as many as were wanted."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from create_dataset import label_outcomes
from create_dataset.choose_prompts import PromptList, choose, router_scores, spread_evenly
from create_dataset.prompt_sources import Prompt
from router_data import InputError, dedup_key


def write_log(rows: list[dict]) -> None:
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(**more) -> Namespace:
    fixed = label_outcomes.parse_args(["--dataset", "log.jsonl", "--choose", "3"])
    return Namespace(**{**vars(fixed), **more})


def test_every_part_of_the_scores_has_its_prompt():
    scores = np.linspace(0, 1, 100)
    chosen = spread_evenly(scores, 10, seed=0)
    assert sorted(int(scores[i] * 10 - 1e-9) for i in chosen) == list(range(10))
    assert chosen == spread_evenly(scores, 10, seed=0) != spread_evenly(scores, 10, seed=1)


def test_as_many_as_wanted_each_once_with_and_without_scores():
    for scores in (np.full(20, np.nan), np.full(20, 0.5), np.array([0.1] * 19 + [np.nan])):
        chosen = spread_evenly(scores, 7, seed=0)
        assert len(set(chosen)) == len(chosen) == 7
    assert sorted(spread_evenly(np.array([0.2, 0.9]), 5, seed=0)) == [0, 1]
    assert spread_evenly(np.array([]), 5, seed=0) == []


def test_the_log_gives_the_scores():
    answers = {"inferior_answer": "a", "superior_answer": "b"}
    write_log(
        [
            {"prompt": "near", "router_score": 0.31, "threshold": 0.3},
            {"prompt": "not scored"},
            {"prompt": "c"} | answers,
        ]
    )
    assert router_scores(["log.jsonl"], None) == ({dedup_key("near"): 0.31}, {dedup_key("c")})


def test_what_the_log_has_both_answers_to_is_not_asked_again(capsys):
    texts = [" ".join(f"{word}{i * 7919 % 9973}" for word in ("why", "does", "it")) for i in range(20)]
    answers = {"inferior_answer": "a", "superior_answer": "b"}
    write_log([{"prompt": text, "router_score": 0.5} | (answers if i < 12 else {}) for i, text in enumerate(texts)])
    assert {prompt.text for prompt in choose(arguments(choose=20))} == set(texts[12:])
    assert "chose 8 of 8 prompts (12 with both answers left out)" in capsys.readouterr().out


def test_from_a_decision_log(capsys):
    texts = [" ".join(f"{word}{i * 7919 % 9973}" for word in ("why", "does", "it")) for i in range(90)]
    write_log([{"prompt": text, "router_score": i / 90, "threshold": 0.5} for i, text in enumerate(texts)])
    chosen = choose(arguments(choose=5))
    assert len(chosen) == 5 and {prompt.text for prompt in chosen} <= set(texts)
    assert "chose 5 of 90 prompts; router_score to spread them over: in 90" in capsys.readouterr().out


def test_what_has_an_outcome_is_left_out():
    prompts = PromptList(Prompt(text, "s", "1") for text in ("a", "b"))
    prompts.leave_out({dedup_key("A")})
    assert [prompt.text for prompt in prompts] == ["b"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--choose", "0"], "at least 1")],
)
def test_bad_choices_are_named(flags, says):
    with pytest.raises(InputError, match=says):
        label_outcomes.parse_args(flags)
