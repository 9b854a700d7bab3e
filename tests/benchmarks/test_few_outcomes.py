"""Learning curves on made-up outcomes: measured once, kept, merged, and read with the right sign."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import random_bert, save_checkpoint
from made_up import made_up_rows

from benchmarks import few_outcomes, learning_curves, outcome_learners
from benchmarks.outcome_learners import CHEAP, KnownPrompts
from router_data import INFERIOR, InputError, Outcome, write_rows


def write_outcomes(path: Path, seed: int) -> Path:
    """The inferior model fails on hard prompts; every eighth is too much for the superior one."""
    rows = [
        {"prompt": row["prompt"], "weak_score": float(row["label"] == INFERIOR), "strong_score": float(i % 8 > 0)}
        for i, row in enumerate(made_up_rows(400, seed))
    ]
    write_rows(path, rows)
    return path


@pytest.mark.slow
def test_a_curve_is_measured_once_and_goes_on_where_it_ended(trained_checkpoint, tmp_path, capsys, monkeypatch):
    saved = Path(shutil.copytree(trained_checkpoint, tmp_path / "models" / trained_checkpoint.name))
    base = save_checkpoint(tmp_path / "tiny-bert", model=random_bert())
    write_rows(tmp_path / "known.jsonl", made_up_rows(4, 5))
    known = {"recipe": {"base": str(base)}, "train_files": [str(tmp_path / "known.jsonl")]}
    (saved / "run.json").write_text(json.dumps(known))
    files = [str(write_outcomes(tmp_path / f"{name}.jsonl", seed)) for seed, name in enumerate(("one", "two"))]
    results = tmp_path / "results.jsonl"
    flags = ["--outcomes", *files, "--model_save_dir", str(saved), "--keep", str(tmp_path), "--results", str(results)]
    few_outcomes.main([*flags, "--sizes", "0", "40", "--draws", "1", "--sets", "one"])
    first = results.read_text()
    assert len(first.splitlines()) == 1 + len(CHEAP)
    few_outcomes.main([*flags, "--sizes", "0", "40", "600", "--draws", "2", "--sets", "one", "mixture"])
    rows = few_outcomes.read_results(results)
    assert results.read_text().startswith(first)  # nothing is measured twice
    assert {(row["set"], row["outcomes"]) for row in rows} == {("one", 0), ("one", 40), ("mixture", 0), ("mixture", 40)}
    assert len(rows) == 2 * (1 + 2 * len(CHEAP))  # 600 outcomes leave 200, of which a third is the log

    curves = learning_curves.summarise(rows)["mixture"]
    figure = curves["router"][0]["apgr"]
    assert figure.low < figure.value < figure.high and figure.low > 0.7  # it knows the hard words
    assert curves["corrected"][40]["apgr"].value > curves["neighbours"][40]["apgr"].value
    assert "| 40 | 0." in capsys.readouterr().out
    with pytest.raises(InputError, match="no set is called three"):
        few_outcomes.main([*flags, "--sets", "three"])

    lessons = []
    monkeypatch.setattr(
        outcome_learners, "rows_to_learn", lambda data, *rest: lessons.append(data.unlabelled) or data.train
    )
    quick = ["--training_flags", "--max_steps 1 --frame_share 0 --freeze_layers 0"]
    few_outcomes.main([*flags, "--sizes", "60", "--draws", "1", "--sets", "one", "--ways", "continued_log", *quick])
    last = few_outcomes.read_results(results)[-1]
    assert last["way"] == "continued_log" and last["apgr"] > 0.7
    assert len(lessons[0]) == (400 - 60) // 3 and last["judged"] <= 227  # prompts of the log don't judge


def known_prompts(n: int, seed: int, margin_says: float, vector_says: float) -> KnownPrompts:
    """Prompts of which the half needs the superior model; margins and vectors say which, more or less clearly."""
    draw = np.random.default_rng(seed)
    needs = np.arange(n) % 2
    vectors = draw.normal(size=(n, 8))
    vectors[:, 0] += vector_says * (2 * needs - 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [Outcome(prompt=f"p{i}", weak_score=1 - need, strong_score=1) for i, need in enumerate(needs)]
    return KnownPrompts("made up", rows, vectors, margin_says * (2 * needs - 1) + draw.normal(size=n), np.arange(n))


def auroc(way: str, drawn: KnownPrompts, judged: KnownPrompts) -> float:
    scores = CHEAP[way](drawn, judged, None)
    return float(np.mean(scores[judged.gain > 0][:, None] > scores[judged.gain <= 0]))


def test_the_blends_lean_on_the_router_and_leave_it_where_outcomes_know_better():
    judged = known_prompts(400, 1, margin_says=1, vector_says=0)
    few = known_prompts(30, 0, margin_says=1, vector_says=0)
    for way in ("weighted_blend", "corrected"):
        assert auroc(way, few, judged) > auroc("router", few, judged) - 0.04 > auroc("logistic", few, judged)
    judged = known_prompts(400, 1, margin_says=0, vector_says=3)
    many = known_prompts(200, 0, margin_says=0, vector_says=3)
    for way in ("weighted_blend", "corrected"):
        assert auroc(way, many, judged) > 0.8 > auroc("router", many, judged)


def row(way: str, draw: int, apgr: float, judged: int = 10, name: str = "s") -> dict:
    """What few_outcomes.py keeps of one draw."""
    resampled = [apgr - 0.2, apgr, apgr + 0.2]
    where = {"set": name, "outcomes": 50, "draw": draw}
    return {**where, "way": way, "judged": judged, "apgr": apgr, "resampled": resampled, "seconds": 1}


def test_the_documents_get_tables_and_a_plot(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "results.md").write_text("before\n<!-- few outcomes -->\nold\n<!-- end of few outcomes -->\nafter\n")
    rows = [row(way, 0, 0.5, name=name) for way in ("router", "corrected") for name in ("s", "mixture")]
    learning_curves.write(learning_curves.summarise(rows), tmp_path, "a-router-save")
    results = (tmp_path / "results.md").read_text()
    assert results.startswith("before\n") and results.endswith("after\n") and "old" not in results
    kinds = (tmp_path / "few_outcomes.md").read_text()
    assert "| 50 | 0.500" in results and "| 50 | 0.500" in kinds and "a-router-save" in kinds
    assert (tmp_path / "images" / "few_outcomes.png").stat().st_size > 10_000


def test_differences_are_paired_and_other_prompts_are_refused():
    rows = [row("router", draw, 0.5 + draw / 10) for draw in range(2)]
    rows += [row("corrected", draw, 0.53 + draw / 10) for draw in range(2)]
    found = learning_curves.summarise(rows)["s"]["corrected"][50]
    lead = found["over_router"]
    assert (lead.value, lead.low, lead.high) == pytest.approx((0.03, 0.03, 0.03))
    assert learning_curves.cell(found, 2).endswith("▲") and found["apgr"].high - found["apgr"].low > 0.3
    rows.append({"set": "s", "way": "continued", "outcomes": 50, "draw": 0, "judged": 10, "refused": "too few"})
    assert learning_curves.cell(found, 3).endswith("▲ (2 of 3 draws)")
    assert learning_curves.cell(learning_curves.summarise(rows)["s"]["continued"][50], 2) == "– (1 refused)"
    rows.append(row("continued", 1, 0.6))
    assert learning_curves.cell(learning_curves.summarise(rows)["s"]["continued"][50], 2).endswith("] (1 refused)")
    with pytest.raises(InputError, match="other prompts than the router"):
        learning_curves.summarise([*rows, row("neighbours", 0, 0.5, judged=9)])
