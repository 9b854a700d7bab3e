"""Choosing a threshold: on every kind of file, with and without a guarantee, into router.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up_rows

from finetuning_model import choose_threshold
from router_data import INFERIOR, SUPERIOR, InputError, write_rows
from router_model import Router


@pytest.fixture
def checkpoint(trained_checkpoint, tmp_path) -> Path:
    folder = Path(shutil.copytree(trained_checkpoint, tmp_path / "models" / trained_checkpoint.name))
    write_rows(tmp_path / "train.jsonl", [{"prompt": "open the door", "label": INFERIOR}])
    (folder / "run.json").write_text(json.dumps({"train_files": [str(tmp_path / "train.jsonl")]}))
    return folder


def write_outcomes(path: Path, n: int = 60) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Outcomes in which the inferior model fails on every hard prompt and the superior one on every seventh."""
    rows = made_up_rows(n)
    weak = np.array([float(row["label"] == INFERIOR) for row in rows])
    strong = np.where(np.arange(n) % 7 == 3, 0.0, 1.0)
    write_rows(
        path,
        [
            {"prompt": row["prompt"], "weak_score": a, "strong_score": b}
            for row, a, b in zip(rows, weak, strong, strict=True)
        ],
    )
    return [row["prompt"] for row in rows], weak, strong


def test_choosing_on_outcomes_writes_router_json(checkpoint, tmp_path, capsys):
    prompts, weak, strong = write_outcomes(tmp_path / "mine.jsonl")
    arguments = ["--model_save_dir", str(checkpoint), "--prompts", str(tmp_path / "mine.jsonl")]
    card = checkpoint / "README.md"
    card.write_text("before\n<!-- thresholds -->\nstale\n<!-- end of thresholds -->\nafter\n")
    choose_threshold.main([*arguments, "--at_most_superior", "30", "--save"])
    router = Router.load(checkpoint)
    text = card.read_text()
    assert f"The default is {router.settings.threshold}." in text and "`at_most_30_percent_superior`" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    threshold, scores = router.settings.threshold, router.score(prompts)
    assert 0.2 < np.mean(scores >= threshold) <= 0.3
    assert router.settings.thresholds["at_most_30_percent_superior"] == threshold
    assert router.settings.thresholds["at_most_10_percent_superior"] == 0.95  # what was there is kept
    assert router.settings.base_model == "tiny" and router.settings.max_length == 64
    printed = capsys.readouterr().out
    quality = np.where(scores >= threshold, strong, weak).sum() / strong.sum()
    assert f"{quality:.1%} [" in printed and "measured on outcomes" in printed and "random" in printed
    assert "a point estimate" in printed
    assert printed.splitlines()[-1] == f"next: python3 inference/run_gradio_model.py --model_save_dir {checkpoint}"

    choose_threshold.main([*arguments, "--at_most_superior", "40", "--save", "mine"])
    assert json.loads((checkpoint / "router.json").read_text())["thresholds"]["mine"] > 0


def test_without_a_target_every_usual_one_is_listed_with_its_price(checkpoint, tmp_path, capsys):
    write_outcomes(tmp_path / "mine.jsonl")
    arguments = ["--model_save_dir", str(checkpoint), "--prompts", str(tmp_path / "mine.jsonl")]
    prices = ["--price_superior", "10", "--price_inferior", "1", "--tokens_per_prompt", "1000"]
    choose_threshold.main([*arguments, *prices])
    lines = capsys.readouterr().out.splitlines()
    now = next(line for line in lines if line.startswith("now"))
    share = float(now.split()[2].rstrip("%")) / 100
    assert float(now.split()[-1]) == pytest.approx(1 + 9 * share, abs=0.01)
    assert sum(line.startswith(("at most", "at least")) for line in lines) == 7
    assert lines[-1].endswith("--at_most_superior 20 --save")


def test_a_guarantee_is_careful_named_and_saved(checkpoint, tmp_path, capsys):
    prompts, weak, strong = write_outcomes(tmp_path / "mine.jsonl", 400)
    arguments = ["--model_save_dir", str(checkpoint), "--prompts", str(tmp_path / "mine.jsonl")]
    choose_threshold.main([*arguments, "--at_least_quality", "90", "--confidence", "95", "--save"])
    printed = capsys.readouterr().out
    assert "guaranteed with 95% confidence on new prompts" in printed and "point estimate" not in printed
    router = Router.load(checkpoint)
    threshold = router.settings.thresholds["at_least_90_percent_quality_with_95_percent_confidence"]
    scores = router.score(prompts)
    assert 0.1 < np.mean(scores < threshold) < 1
    assert np.where(scores >= threshold, strong, weak).sum() / strong.sum() > 0.9
    with pytest.raises(InputError, match="the threshold that guarantees the quality goes with"):
        choose_threshold.main([*arguments, "--at_least_quality", "90", "--confidence", "95", "--at_most_superior", "1"])


def test_a_guarantee_takes_enough_outcomes_that_were_not_trained_on(checkpoint, tmp_path):
    write_outcomes(tmp_path / "mine.jsonl", 20)
    flags = ["--model_save_dir", str(checkpoint), "--at_least_quality", "95", "--confidence", "95", "--prompts"]
    with pytest.raises(InputError, match=r"20 outcomes are too few to guarantee 95% .* it would take about [\d,]+"):
        choose_threshold.main([*flags, str(tmp_path / "mine.jsonl")])
    write_rows(tmp_path / "labelled.jsonl", made_up_rows(20))
    with pytest.raises(InputError, match="needs outcomes of both models"):
        choose_threshold.main([*flags, str(tmp_path / "labelled.jsonl")])
    (checkpoint / "run.json").write_text(json.dumps({"train_files": [str(tmp_path / "mine.jsonl")]}))
    with pytest.raises(InputError, match="mine.jsonl was trained on"):
        choose_threshold.main([*flags, str(tmp_path / "mine.jsonl")])


def test_a_guarantee_leaves_out_what_the_router_knows(checkpoint, tmp_path, capsys):
    prompts, _, _ = write_outcomes(tmp_path / "mine.jsonl", 400)
    taught = {prompt.upper() for prompt in prompts[:50]}
    write_rows(tmp_path / "train.jsonl", [{"prompt": prompt, "label": INFERIOR} for prompt in taught])
    unseen = sum(prompt.upper() not in taught for prompt in prompts)
    flags = ["--model_save_dir", str(checkpoint), "--at_least_quality", "90", "--confidence", "95", "--prompts"]
    with pytest.warns(UserWarning, match=f"{400 - unseen} outcomes are left out"):
        choose_threshold.main([*flags, str(tmp_path / "mine.jsonl")])
    assert f"{unseen} prompts, scored by" in capsys.readouterr().out
    write_rows(tmp_path / "train.jsonl", [{"prompt": prompt, "label": INFERIOR} for prompt in prompts])
    with pytest.raises(InputError, match="all of these prompts were trained on"):
        choose_threshold.main([*flags, str(tmp_path / "mine.jsonl")])


def test_prompts_come_as_text_lines_tables_conversations_labelled_rows_or_outcomes(tmp_path):
    (tmp_path / "lines.txt").write_text("first\n\n second line\n", encoding="utf-8")
    assert choose_threshold.read_prompts([str(tmp_path / "lines.txt")]).prompts == ["first", " second line"]
    (tmp_path / "table.csv").write_text("question,x\nWhy?,1\n")
    known = choose_threshold.read_prompts([str(tmp_path / "table.csv")])
    assert known.prompts == ["Why?"] and not len(known.inferior) and not known.measured
    messages = [{"role": "user", "content": "Prove it."}]
    write_rows(tmp_path / "chats.jsonl", [{"messages": messages}])
    assert choose_threshold.read_prompts([str(tmp_path / "chats.jsonl")]).prompts == [messages]
    write_rows(tmp_path / "labelled.jsonl", [{"prompt": "a", "label": SUPERIOR, "superior_probability": 0.8}])
    known = choose_threshold.read_prompts([str(tmp_path / "labelled.jsonl")])
    assert known.inferior == pytest.approx([0.2]) and known.superior == [1] and "soft labels" in known.origin
    write_outcomes(tmp_path / "outcomes.jsonl", 3)
    assert choose_threshold.read_prompts([str(tmp_path / "outcomes.jsonl")]).measured
    with pytest.raises(InputError, match="different kinds"):
        choose_threshold.read_prompts([str(tmp_path / "*.jsonl")])


def test_labelled_rows_of_stage_2_with_measured_scores_count_as_outcomes(tmp_path):
    row = {"prompt": "a", "label": SUPERIOR, "weak_score": 0.2, "strong_score": 0.9}
    write_rows(tmp_path / "router_dataset_outcomes.jsonl", [row])
    known = choose_threshold.read_prompts([str(tmp_path / "router_dataset_outcomes.jsonl")])
    assert known.measured and (known.inferior[0], known.superior[0]) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--at_most_cost", "3"], "--at_most_cost needs --price_superior"),
        (["--save"], "--save needs a target"),
        (["--price_superior", "3"], "go together"),
        (["--confidence", "95"], "--confidence needs --at_least_quality"),
        (["--at_least_quality", "95", "--confidence", "100"], "--confidence 100 is not between"),
        (["--threshold", "2"], "--threshold 2 is not between 0 and 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, says):
    with pytest.raises(InputError, match=says):
        choose_threshold.parse_args(["--prompts", "x.jsonl", *flags])
