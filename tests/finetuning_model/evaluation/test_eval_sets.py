"""What a router is judged on: sets of any file, subsets, pools, categories, near duplicates."""

import numpy as np
import pytest

from finetuning_model.evaluation import eval_sets
from finetuning_model.evaluation.eval_sets import EvalSet
from router_data import INFERIOR, SUPERIOR, InputError, LabelledPrompt, Outcome, write_rows


def outcome(prompt: str, weak: float, strong: float, **more) -> dict:
    return {"prompt": prompt, "weak_score": weak, "strong_score": strong, **more}


def scored(name: str, n: int, **scores) -> EvalSet:
    rows = [Outcome(**outcome(f"{name} {i}", 0, i % 2)) for i in range(n)]
    eval_set = eval_sets.outcome_set(name, rows)
    eval_set.scores = {scorer: np.full(n, value) for scorer, value in scores.items()}
    return eval_set


def test_outcomes_are_labelled_by_the_gain_and_by_the_failure_of_the_inferior_model():
    rows = [Outcome(**outcome("a", 0.9, 1.0)), Outcome(**outcome("b", 0, 0)), Outcome(**outcome("c", 0.4, 0.9))]
    eval_set = eval_sets.outcome_set("mine", rows)
    gains, fails = eval_set.labels.values()
    assert (gains >= 0.5).tolist() == [False, False, True] and fails.tolist() == [0, 1, 1]
    assert eval_set.first_labels.tolist() == [0, 0, 1]
    assert eval_set.has_outcomes and eval_set.has_gap and eval_set.gain.tolist() == pytest.approx([0.1, 0, 0.5])
    grades = eval_sets.outcome_set("grades", [Outcome(**outcome("a", 3, 8))])
    assert list(grades.labels) == [eval_sets.GAINS]  # 0.5 says nothing on another scale


def test_every_kind_of_file_is_read_and_a_bad_row_named(tmp_path):
    (tmp_path / "mine.csv").write_text("question,weak_score,strong_score,group\nWhy?,0,1,\n")
    (row,) = eval_sets.read_checked(tmp_path / "mine.csv", Outcome)
    assert (row.prompt, row.weak_score, row.strong_score, row.group) == ("Why?", 0, 1, None)
    write_rows(tmp_path / "broken.jsonl", [outcome("a", 1, 1), {"prompt": "b"}])
    with pytest.raises(InputError, match="broken.jsonl, row 2: weak_score"):
        eval_sets.read_checked(tmp_path / "broken.jsonl", Outcome)


def test_predictions_of_both_forms_give_the_labellers_rows(tmp_path):
    old = {"prompt": "p", "label": SUPERIOR, "superior_probability": 0.1, "target": 0.8}
    new = {"prompt": "p", "label": SUPERIOR, "superior_probability": 0.8, "router_score": 0.1, "threshold": 0.5}
    for row in (old, new):
        write_rows(tmp_path / "predictions.jsonl", [row])
        (read,) = eval_sets.read_predictions(tmp_path / "predictions.jsonl")
        assert read.soft_label == 0.8
    assert eval_sets.read_predictions(tmp_path / "none.jsonl") == []


def test_a_draw_keeps_every_field_of_its_rows_together():
    eval_set = scored("a", 50, router=0.5)
    eval_set.scores["router"] = np.arange(50.0)
    few = eval_set.at_most(10, seed=1)
    rows = few.scores["router"].astype(int)
    assert len(few.prompts) == 10 and few.prompts == [f"a {i}" for i in rows]
    assert few.strong.tolist() == [i % 2 for i in rows]
    assert (few.first_labels == few.strong).all()
    assert few.at_most(10, seed=2) is few and eval_set.at_most(10, seed=1).prompts == few.prompts
    assert not len(few.near_duplicates)  # unknown stays unknown


def test_a_pool_takes_at_most_so_many_of_each_set_and_what_all_have():
    pool = eval_sets.pooled_set([scored("a", 900, router=0.1, extra=1.0), scored("b", 30, router=0.9)], seed=0)
    assert len(pool.prompts) == eval_sets.MAX_POOLED_ROWS + 30
    assert pool.categories.count("b") == 30 and set(pool.categories) == {"a", "b"}
    assert list(pool.scores) == ["router"] and pool.scores["router"][-1] == 0.9
    assert pool.gain.sum() > 0 and not len(pool.near_duplicates)


def test_small_categories_are_pooled_and_one_alone_is_not():
    names = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"]
    assert eval_sets.pool_small(names, most=4) == names
    assert eval_sets.pool_small(names, most=3) == ["a"] * 5 + ["b"] * 4 + ["other (2 categories)"] * 4
    assert eval_sets.pool_small(names, most=9, fewest_rows=2) == names
    assert set(eval_sets.pool_small(names, most=9, fewest_rows=4)) == {"a", "b", "other (2 categories)"}


def test_near_duplicates_of_training_rows_are_marked():
    train = [LabelledPrompt(prompt="fish and bread with the apple", label=INFERIOR)]
    alike, other = (
        EvalSet("x", "", ["Fish and bread with the apple!"], {}, [], []),
        EvalSet("y", "", ["door"], {}, [], []),
    )
    eval_sets.mark_near_duplicates([alike, other], train)
    assert alike.near_duplicates.tolist() == [True] and other.near_duplicates.tolist() == [False]


def test_the_language_is_the_rows_own_or_the_script_of_its_letters():
    assert eval_sets.language_of(LabelledPrompt(prompt="Hello", label=INFERIOR, language="German")) == "German"
    for prompt, script in (
        ("Привет world мир", "Cyrillic script"),
        ("你好", "Cjk script"),
        ("1 + 1 = ?", "no letters"),
    ):
        assert eval_sets.language_of(LabelledPrompt(prompt=prompt, label=INFERIOR)) == script
