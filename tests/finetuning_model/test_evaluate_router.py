"""One whole evaluation of a tiny router: its figures, its report, its verdict, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import random_bert, save_checkpoint
from made_up import made_up_rows
from sklearn import metrics as sk

from finetuning_model import evaluate_router
from finetuning_model.evaluation import metrics as m
from finetuning_model.evaluation import model_card
from finetuning_model.evaluation.baselines import ORACLE_BY_CATEGORY, ROUTER
from router_data import EVEN_GAIN, INFERIOR, SUPERIOR, run_script, write_rows
from router_model import Router, Verdict

pytestmark = pytest.mark.slow
NEAR = 0.005  # batches of other lengths round a score's last digit otherwise, which may part a tie


def prepared(trained_checkpoint: Path, folder: Path) -> tuple[Path, list[str]]:
    """A copy of the trained checkpoint that says what it was trained on; the training prompts."""
    saved = Path(shutil.copytree(trained_checkpoint, folder / "models" / trained_checkpoint.name))
    rows = [{**row, "category": "even"} for row in made_up_rows(80, seed=7)]
    write_rows(folder / "train.jsonl", rows)
    base = save_checkpoint(folder / "tiny-bert", model=random_bert())
    run = {"train_files": [str(folder / "train.jsonl")], "recipe": {"base": str(base), "frames_file": None}}
    (saved / "run.json").write_text(json.dumps(run))
    return saved, [row["prompt"] for row in rows]


def write_outcomes(path: Path, n: int = 60, seed: int = 1, extra: list[str] | None = None, fails=True):
    """Outcomes in which the inferior model fails on every hard prompt and on every tenth, and the other on some.

    Args:
        fails: False: it fails on the easy ones instead, so that the router is worse than chance.
    """
    rows = made_up_rows(n, seed)
    prompts = [row["prompt"] for row in rows] + (extra or [])
    hard = np.array([row["label"] == SUPERIOR for row in rows] + [False] * len(extra or []))
    number = np.arange(len(prompts))
    weak = np.where((hard == fails) | (number % 10 == 0), 0.0, 1.0)
    strong = np.where(number % 14 == 3, 0.0, 1.0)
    write_rows(
        path,
        [
            {"prompt": prompt, "group": "even" if i % 4 < 2 else "odd", "weak_score": a, "strong_score": b}
            for i, (prompt, a, b) in enumerate(zip(prompts, weak, strong, strict=True))
        ],
    )
    return prompts, weak, strong


def question(i: int, prompt: str, hard: bool) -> dict:
    ratio = 0.1 if hard else 0.6
    return {
        **{"prompt": prompt, "label": SUPERIOR if hard else INFERIOR, "question_id": i, "category": "writing"},
        **{"turns": [prompt], "superior_wins": 9, "inferior_wins": 1, "ties": 0, "difficulty_rank": i + 1},
        **{"inferior_ratio": ratio, "inferior_ratio_low": 0, "inferior_ratio_high": 1, "in_labelling_prompt": i < 4},
    }


@pytest.fixture(scope="module")
def report(trained_checkpoint, tmp_path_factory):
    """A whole evaluation: two sets of outcomes (one with near duplicates), labelled rows, questions, frames, prices."""
    folder = tmp_path_factory.mktemp("evaluation")
    saved, train_prompts = prepared(trained_checkpoint, folder)
    marks = "before\n<!-- verdict -->\nnone yet\n<!-- end of verdict -->\nafter\n"
    (saved / "README.md").write_text(marks)
    outcomes = write_outcomes(folder / "mine.jsonl", extra=[train_prompts[0].upper(), train_prompts[2] + "!"])
    write_outcomes(folder / "wrong.jsonl", 40, seed=5, fails=False)
    write_rows(folder / "graded.jsonl", [{**row, "category": None} for row in made_up_rows(30, seed=2)])
    questions = made_up_rows(16, seed=3)
    rows = [question(i, row["prompt"], row["label"] == SUPERIOR) for i, row in enumerate(questions)]
    write_rows(folder / "questions.jsonl", rows)
    (folder / "frames.txt").write_text("please $prompt\n====\n$prompt zorp quix\n")
    evaluate_router.main(
        [
            *("--model_save_dir", str(saved), "--outcomes", str(folder / "mine.jsonl"), str(folder / "wrong.jsonl")),
            *("--labelled", str(folder / "graded.jsonl"), "--questions_file", str(folder / "questions.jsonl")),
            *("--frames", str(folder / "frames.txt")),
            *("--price_superior", "10", "--price_inferior", "1", "--tokens_per_prompt", "1000"),
        ]
    )
    made = saved / "evaluation"
    return saved, json.loads((made / "evaluation.json").read_text()), (made / "evaluation.md").read_text(), outcomes


def test_figures_on_outcomes_are_those_of_the_scores(report):
    saved, evaluation, _, (prompts, weak, strong) = report
    scores = Router.load(saved).score(prompts)
    mine = evaluation["sets"][0]
    gains, fails = mine["labels"]
    assert f"better by {EVEN_GAIN:g}" in gains["says"] and "fails" in fails["says"]
    auroc = fails["metrics"]["AUROC"][ROUTER]["figure"]
    assert auroc["value"] == pytest.approx(sk.roc_auc_score(weak < 0.5, scores), abs=NEAR)
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    of_gains = gains["metrics"]["AUROC"][ROUTER]["figure"]["value"]
    assert of_gains == pytest.approx(sk.roc_auc_score(strong > weak, scores), abs=NEAR)
    apgr = mine["curve"]["APGR"]
    expected = m.apgr(strong - weak)(scores, np.ones((1, 62)))[0]
    assert apgr[ROUTER]["figure"]["value"] == pytest.approx(expected, abs=NEAR)
    assert apgr["always superior"]["figure"]["value"] == pytest.approx(0.5)
    assert apgr["random"]["difference"]["low"] > 0  # the router knows the hard words
    half = mine["curve"]["CPT(50)"][ROUTER]["figure"]["value"]
    assert mine["curve"]["cost at CPT(50)"][ROUTER]["figure"]["value"] == pytest.approx(1 + 9 * half)
    at = mine["at_threshold"]
    assert at["superior_share"]["value"] == pytest.approx(np.mean(scores >= 0.5))
    assert at["cost"] == pytest.approx(1 + 9 * np.mean(scores >= 0.5))
    quality = np.where(scores >= 0.5, strong, weak).sum() / strong.sum()
    assert at["quality"]["value"] == pytest.approx(quality)
    assert fails["confusion"][SUPERIOR][SUPERIOR] == int(((weak < 0.5) & (scores >= 0.5)).sum())


def test_every_baseline_stands_beside_the_router_in_the_same_run(report):
    _, evaluation, text, _ = report
    named = {"always inferior", "always superior", "random", "majority", "prompt length", "category's mean"}
    named |= {"TF-IDF + logistic regression", "embeddings + logistic regression", "embeddings + nearest neighbours"}
    scorers = evaluation["sets"][0]["curve"]["APGR"]
    assert set(scorers) == {ROUTER, ORACLE_BY_CATEGORY, *named}
    assert all(entry["difference"] is not None for name, entry in scorers.items() if name != ROUTER)
    assert all(f"| {name} |" in text for name in named)
    assert "prompt length" not in evaluation["sets"][0]["labels"][0]["metrics"]["Brier score"]


def test_several_sets_of_outcomes_are_also_judged_together(report):
    _, evaluation, text, _ = report
    kinds, pooled = evaluation["kinds"], evaluation["pooled"]
    assert kinds["sets"] == ["mine", "wrong"] and kinds["rows"] == pooled["rows"] == 102
    own = [s["curve"]["APGR"][ROUTER]["figure"]["value"] for s in evaluation["sets"][:2]]
    assert kinds["mean"][ROUTER]["figure"]["value"] == pytest.approx(np.mean(own))
    assert kinds["worst"][ROUTER]["kind"] == "wrong"
    together = kinds["pooled"]["APGR"]
    assert together[ROUTER] == pooled["curve"]["APGR"][ROUTER]
    assert {"TF-IDF + logistic regression", "embeddings + nearest neighbours", ORACLE_BY_CATEGORY} <= set(together)
    assert "## 2 kinds together" in text and "worst kind: APGR" in text
    assert {bucket["name"] for bucket in pooled["by"]["category"]} == {"mine", "wrong"}


def test_frames_of_the_users_own_are_judged_and_the_one_that_flips_decisions_is_named(report):
    _, evaluation, text, _ = report
    frames = evaluation["frames"]
    assert (frames["file"], frames["frames"]) == ("frames.txt", 2)
    assert frames["worst"]["frame"] == "$prompt zorp quix"  # the hard words pull every request up
    assert frames["worst"]["superior_share"]["value"] > 0.9 > frames["bare"]["superior_share"]["value"]
    assert "The checkpoint was trained without frames." in text and "`please $prompt`" in text


def test_the_verdict_lies_in_the_checkpoint_and_in_its_card(report):
    saved, evaluation, text, _ = report
    verdict = Verdict.load(saved)
    assert verdict.sentences == evaluation["verdict"]["sentences"] and verdict.rows == 102
    assert evaluation["verdict"]["measured_on"].startswith("all kinds pooled")
    at = evaluation["pooled"]["at_threshold"]
    assert verdict.pays == (at["lead_over"]["random"]["low"] > 0)
    assert f"{at['quality']['value']:.1%} of its quality" in verdict.sentences[0]
    card = (saved / "README.md").read_text()
    assert card.startswith("before\n") and card.endswith("after\n") and "none yet" not in card
    assert all(sentence in card and sentence in text for sentence in verdict.sentences)
    again = card
    model_card.update_model_card(saved)
    assert (saved / "README.md").read_text() == again


def test_near_duplicates_of_training_rows_are_counted_and_left_out_for_comparison(report):
    _, evaluation, text, _ = report
    mine, _, graded, _ = evaluation["sets"]
    assert mine["near_duplicates"] == 2 and mine["without_near_duplicates"]["rows"] == 60
    assert "2 of the 62 prompts of mine are near duplicates of training rows" in text
    assert graded["near_duplicates"] == 0


def test_labelled_rows_and_questions_are_judged_on_their_labels(report):
    _, evaluation, text, _ = report
    _, _, graded, questions = evaluation["sets"]
    assert graded["rows"] == 30 and "curve" not in graded and "at_threshold" not in graded
    assert graded["labels"][0]["superior_share"] == 0.5
    assert questions["rows"] == 12  # four were shown to the labeller
    rho = questions["human_preference"]["Spearman's ρ with the human preference"][ROUTER]["figure"]["value"]
    assert rho > 0.7 and "Rank correlation with the human votes" in text


def test_plots_probes_and_robustness_are_there(report):
    saved, evaluation, text, _ = report
    for judged in [*evaluation["sets"], evaluation["pooled"]]:
        for plot in judged["plots"]:
            assert (saved / "evaluation" / plot).read_bytes().startswith(b"\x89PNG") and f"({plot})" in text
    assert evaluation["sets"][0]["plots"][0] == "mine_cost_quality.png"
    assert evaluation["pooled"]["plots"][0] == "all_kinds_pooled_cost_quality.png"
    assert evaluation["probes"]["ordered_pairs"]["rows"] == 150 and evaluation["probes"]["ladders"]["rows"] == 40
    assert "TF-IDF + logistic regression" in evaluation["probes"]["ordered_pairs"]["in_order"]
    found = evaluation["robustness"]
    assert set(found["translations"]) == {"en", "de", "es", "fr", "ru", "zh"} and len(found["perturbations"]) == 5
    assert "150 pairs of prompts" in text and "## Robustness" in text


def test_the_report_is_well_formed_markdown(report):
    _, _, text, _ = report
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.sub(r"\\\|", "", line).split("|")) for line in block.splitlines()}
        assert len(cells) == 1, block


@pytest.fixture
def checkpoint(trained_checkpoint, tmp_path) -> Path:
    return prepared(trained_checkpoint, tmp_path)[0]


def run(*arguments: str | Path) -> None:
    """With a single short frame, so that a test takes a second."""
    frames = Path(arguments[-1]).parent / "one_frame.txt"
    frames.write_text("Hi! $prompt")
    evaluate_router.main([*map(str, arguments), "--frames", str(frames)])


def test_with_no_files_the_checkpoints_own_test_part_is_judged_and_nothing_is_claimed(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run("--output_dir", tmp_path / "out")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (own,) = evaluation["sets"]
    assert (own["name"], own["rows"], evaluation["train_rows"]) == ("test_part", 2, 80)
    assert evaluation["kinds"] is None and evaluation["pooled"] is None
    printed = capsys.readouterr()
    assert "test_part (2 prompts): AUROC" in printed.out and "no outcomes of two models were given" in printed.out
    assert printed.out.splitlines()[-1].startswith("next: python3 create_dataset/label_outcomes.py")
    assert "judging on test_part" in printed.err
    assert not (checkpoint / "verdict.json").exists()


def test_what_cannot_be_had_is_said_in_one_line_and_a_rehearsal_leaves_no_verdict(checkpoint, tmp_path, capsys):
    write_outcomes(tmp_path / "mine.jsonl", 20)
    (tmp_path / "nowhere" / "tiny").mkdir(parents=True)  # the base's name, and no model in it
    arguments = ["--model_save_dir", checkpoint, "--outcomes", tmp_path / "mine.jsonl"]
    run("--hf_model_name", tmp_path / "nowhere" / "tiny", "--limit", "12", *arguments)
    evaluation = json.loads((checkpoint / "evaluation" / "evaluation.json").read_text())
    assert evaluation["sets"][0]["rows"] == 12 and not (checkpoint / "verdict.json").exists()
    assert "embeddings + logistic regression" not in evaluation["sets"][0]["curve"]["APGR"]
    assert "warning: no baselines on embeddings" in capsys.readouterr().out
    (tmp_path / "train.jsonl").unlink()
    run("--threshold", "0.3", *arguments)
    assert "no trained baselines" in capsys.readouterr().out
    assert Verdict.load(checkpoint).threshold == 0.3
    assert Router.load(checkpoint).settings.threshold == 0.5


def test_a_log_alone_is_compared_with_the_validation_part_and_nothing_else_is_judged(checkpoint, tmp_path, capsys):
    row = {"time": "2026-11-29T00:00:00", "threshold": 0.5, "router": checkpoint.name, "prompt": "a"}
    write_rows(tmp_path / "decisions.jsonl", [{**row, "router_score": 0.9 + i / 2000} for i in range(150)])
    run("--model_save_dir", checkpoint, "--log", tmp_path / "decisions.jsonl")
    found = json.loads((checkpoint / "evaluation" / "drift.json").read_text())
    assert found["drifted"] and found["superior_share"]["value"] == 1 and found["rows"] == 150
    assert (checkpoint / "evaluation" / "drift.png").read_bytes().startswith(b"\x89PNG")
    *_, told, following = capsys.readouterr().out.splitlines()
    assert told == found["sentences"][1] and following.startswith("next: python3 finetuning_model/choose_threshold.py")
    assert not (checkpoint / "evaluation" / "evaluation.json").exists()


def test_frames_that_were_trained_on_are_said_to_flatter(checkpoint, tmp_path):
    record = json.loads((checkpoint / "run.json").read_text())
    record["recipe"]["frames_file"] = str(tmp_path / "one_frame.txt")
    (checkpoint / "run.json").write_text(json.dumps(record))
    run("--model_save_dir", checkpoint, "--output_dir", tmp_path / "out")
    assert "1 of them were trained on: that flatters the router." in (tmp_path / "out" / "evaluation.md").read_text()


def test_errors_are_one_line(checkpoint, tmp_path, capsys):
    write_outcomes(tmp_path / "mine.jsonl", 20)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "weak_score": 1, "strong_score": 1}\n{"prompt": "b"}\n')
    mine = ["--outcomes", str(tmp_path / "mine.jsonl")]
    for argv, expected in (
        (["--model_save_dir", str(tmp_path / "none"), *mine], "no model folder at"),
        (["--outcomes", str(tmp_path / "none.jsonl")], "no such file"),
        (["--outcomes", str(tmp_path / "broken.jsonl")], "broken.jsonl, row 2: weak_score"),
        ([*mine, "--train_files", str(tmp_path / "none.jsonl")], "no such file"),
        ([*mine, "--frames", str(tmp_path / "none.txt")], "cannot read the frames"),
        ([*mine, "--price_superior", "1"], "go together"),
        ([*mine, "--price_superior", "1", "--price_inferior", "2"], "must be more than"),
        ([*mine, "--limit", "0"], "--limit must be at least 1"),
    ):
        argv = argv if "--model_save_dir" in argv else ["--model_save_dir", str(checkpoint), *argv]
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda argv=argv: evaluate_router.main(argv))
        assert stopped.value.code == 1
        error = capsys.readouterr().err.strip()
        assert error.splitlines()[-1].startswith("error: ") and expected in error.splitlines()[-1]
