"""Stage 3 on a tiny BERT: what it reads, what it refuses, and the checkpoint it leaves."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, random_bert, save_checkpoint
from made_up import made_up_rows, row_of

from finetuning_model import finetune_bert
from finetuning_model.training import newest_trainer_state
from router_data import (
    INFERIOR,
    LABELS,
    SUPERIOR,
    InputError,
    RouterAnswer,
    label_of,
    normalise_prompt,
    read_rows,
    write_rows,
)
from router_model import REQUEST_FINDER_FILE, Router, TradeoffTable


def question(i: int, hard: bool, shown: bool = False) -> dict:
    ratio = 0.05 if hard else 0.5
    return {
        "prompt": f"{'zorp quix' if hard else 'apple door'} q{i}",
        "label": SUPERIOR if hard else INFERIOR,
        "question_id": 80 + i,
        "category": "writing",
        "turns": [f"{'zorp quix' if hard else 'apple door'} q{i}", "and the chair"],
        "superior_wins": 10,
        "inferior_wins": 2,
        "ties": 2,
        "inferior_ratio": ratio,
        "inferior_ratio_low": 0.0,
        "inferior_ratio_high": 1.0,
        "difficulty_rank": i + 1,
        "in_labelling_prompt": shown,
    }


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny BERT that was never fine-tuned."""
    return save_checkpoint(tmp_path_factory.mktemp("hub") / "tiny-bert", model=random_bert())


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
    """One whole run of the script: its folder, its questions and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    rows = made_up_rows(240)
    write_rows(folder / "router_dataset_labelled-a.jsonl", rows[:150])
    write_rows(
        folder / "router_dataset_labelled-b.jsonl", rows[150:] + rows[:5] + [row_of(question(3, True)["prompt"])]
    )
    write_rows(folder / "auxiliary.jsonl", rows[:60] + made_up_rows(20, seed=1))
    questions = [question(i, hard=i % 2 == 1, shown=i < 2) for i in range(12)]
    write_rows(folder / "questions.jsonl", questions)
    (folder / "frames.txt").write_text("please $prompt\n====\n$prompt with the\n")
    printed = subprocess.run(
        [sys.executable, ROOT / "finetuning_model" / "finetune_bert.py", *arguments(folder, base)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert printed.returncode == 0, printed.stderr[-2000:]
    (saved,) = (folder / "models").glob("*-save")
    return saved, questions, printed.stdout


def arguments(folder: Path, base: Path, *more: str) -> list[str]:
    return [
        *("--train_files", str(folder / "router_dataset_labelled-*.jsonl"), "--hf_model_name", str(base)),
        *("--questions_file", str(folder / "questions.jsonl"), "--output_dir", str(folder / "models")),
        *("--auxiliary_files", str(folder / "auxiliary.jsonl")),
        *("--num_train_epochs", "20", "--learning_rate", "5e-4", "--max_length", "32", "--layer_decay", "1"),
        *("--early_stopping_patience", "20", "--freeze_layers", "0", "--frames", str(folder / "frames.txt"), *more),
    ]


def test_it_learns_and_beats_the_majority_on_the_test_part(run):
    saved, _, _ = run
    test = json.loads((saved / "metrics.json").read_text())["test"]
    router = test["figures"]["this router"]
    assert router["AUROC"]["value"] > 0.9
    assert router["accuracy"]["value"] > test["figures"]["majority"]["accuracy"]["value"] + 0.2
    assert router["AUROC"]["low"] <= router["AUROC"]["value"] <= router["AUROC"]["high"]
    assert {"prompt length", "TF-IDF + logistic regression", "embeddings + nearest neighbours"} <= set(test["figures"])
    counts = test["confusion_matrix"]
    assert sum(counts[a][b] for a in LABELS for b in LABELS) == test["rows"]


def test_the_folder_holds_the_contract_and_loads_plainly(run):
    from transformers import AutoModelForSequenceClassification

    saved, _, _ = run
    names = {path.name for path in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "router.json", "metrics.json", "run.json"} <= names
    assert {"README.md", "predictions.jsonl", "reliability.png", "scores.png", "training.png"} <= names
    assert not any(path.is_dir() for path in saved.glob("seed-*"))
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    assert model.config.id2label == {0: INFERIOR, 1: SUPERIOR}
    record = json.loads((saved / "run.json").read_text())
    assert record["arguments"]["seed"] == 0 and all(len(digest) == 64 for digest in record["data_sha256"].values())


def test_predictions_are_labelled_rows_with_what_the_saved_checkpoint_says(run):
    saved, _, _ = run
    for name in ("predictions.jsonl", "validation_predictions.jsonl"):
        labelled, answers = list(read_rows(saved / name)), list(read_rows(saved / name, RouterAnswer))
        assert {row.soft_label for row in labelled} == {0.1, 0.9}
        scores = Router.load(saved).score([row.prompt for row in labelled])
        assert np.allclose(scores, [row.router_score for row in answers], atol=1e-4)
        assert all(row.router_label == label_of(row.router_score, row.threshold) for row in answers)
        assert np.mean([row.label == answer.router_label for row, answer in zip(labelled, answers, strict=True)]) > 0.8


def test_grep_finds_the_rows_so_labelled_in_predictions_too(run):
    lines = (run[0] / "predictions.jsonl").read_text().splitlines()
    found = [line for line in lines if '"ROUTE_TO_SUPERIOR"' in line]
    assert [json.loads(line)["label"] for line in found] == [SUPERIOR] * len(found)
    assert len(found) == sum(json.loads(line)["label"] == SUPERIOR for line in lines)


def test_the_temperature_and_thresholds_are_in_router_json(run):
    saved, _, _ = run
    settings = json.loads((saved / "router.json").read_text())
    assert settings["temperature"] > 0 and settings["max_length"] == 32 and settings["base_model"] == "tiny-bert"
    assert "at_most_20_percent_superior" in settings["thresholds"]
    scores = [row.router_score for row in read_rows(saved / "validation_predictions.jsonl", RouterAnswer)]
    assert np.mean(np.array(scores) >= settings["thresholds"]["at_most_20_percent_superior"]) <= 0.2


def test_the_tradeoff_says_what_each_threshold_brings_on_the_validation_rows(run):
    saved, _, _ = run
    table = TradeoffTable.load(saved)
    scores = np.array([row.router_score for row in read_rows(saved / "validation_predictions.jsonl", RouterAnswer)])
    half = table.at(0.5)
    assert table.rows == len(scores) and table.superior_share[half] == pytest.approx(np.mean(scores >= 0.5))
    assert table.quality_low[half] <= table.quality[half] <= table.quality_high[half]
    assert table.quality[0] == pytest.approx(1) and table.superior_share[0] == 1


def test_the_record_names_every_setting_as_it_was_used(run):
    record = json.loads((run[0] / "run.json").read_text())
    recipe = record["recipe"]
    assert (recipe["freeze_layers"], recipe["max_length"], recipe["like_prompts"]) == (0, 32, 0)
    assert recipe["smooth_labels"] is False
    assert recipe["frame_share"] == finetune_bert.FRAME_SHARE
    assert [name for name, value in recipe.items() if value is None] == ["continued_from", "finder_length"]
    assert not record["rehearsal"]


def test_it_goes_on_from_a_router_and_never_judges_on_what_that_knows(run, tmp_path, capsys):
    saved, _, _ = run
    known = [row["prompt"] for row in made_up_rows(240)][:60]
    scores = {True: (0.0, 1.0), False: (1.0, 1.0)}
    rows = [(prompt, i % 2 == 1) for i, prompt in enumerate(known)]
    rows += [(row["prompt"], row["label"] == SUPERIOR) for row in made_up_rows(120, seed=7)]
    write_rows(
        tmp_path / "outcomes.jsonl",
        [{"prompt": prompt, "weak_score": scores[hard][0], "strong_score": scores[hard][1]} for prompt, hard in rows],
    )
    write_rows(tmp_path / "log.jsonl", made_up_rows(60, seed=9))
    flags = ("--train_files", str(tmp_path / "outcomes.jsonl"), "--unlabelled_files", str(tmp_path / "log.jsonl"))
    flags += ("--hf_model_name", str(saved), "--max_steps", "1")
    folder = finetune_bert.main(
        [*flags, "--output_dir", str(tmp_path), "--questions_file", str(tmp_path / "none.jsonl")]
    )
    settings, record = (json.loads((folder / name).read_text()) for name in ("router.json", "run.json"))
    assert (settings["base_model"], settings["continued_from"]) == ("tiny-bert", str(saved))
    assert 50 < record["rows"]["unlabelled"] <= 60
    recipe = record["recipe"]
    assert (recipe["continued_from"], recipe["max_length"], recipe["like_prompts"]) == (str(saved), 32, 800)
    assert recipe["smooth_labels"] is True
    assert f"up to 800 prompts of `{tmp_path / 'log.jsonl'}`" in (folder / "README.md").read_text()
    assert settings["onnx"]["rows"] == record["rows"]["validation"] + record["rows"]["train"] > 100
    figures = json.loads((folder / "metrics.json").read_text())["test"]["figures"]
    assert figures["the router it went on from"]["AUROC"]["value"] > 0.9 < figures["this router"]["AUROC"]["value"]
    judged = {
        row.prompt for name in ("predictions.jsonl", "validation_predictions.jsonl") for row in read_rows(folder / name)
    }
    held_out_before = {
        row.prompt for name in ("predictions.jsonl", "validation_predictions.jsonl") for row in read_rows(saved / name)
    }
    assert judged and not judged & (set(known) - held_out_before)
    said = capsys.readouterr().out
    assert f"going on from {saved}" in said and f"up to 800 prompts of {tmp_path / 'log.jsonl'}" in said
    assert re.search(r"only 18 rows calibrated it: .*100 would do, which takes some 1,000 rows", said)


def test_the_report_has_the_frames_that_judge(run):
    frames = json.loads((run[0] / "metrics.json").read_text())["frames"]
    assert frames["frames"] >= 40 and 0 <= frames["worst"]["kept"]["value"] <= frames["kept"]["value"] <= 1
    assert "mean of" in (run[0] / "README.md").read_text()


def test_repeats_and_test_questions_are_dropped_and_shown_questions_not_judged(run):
    saved, questions, printed = run
    assert "246 rows read, 5 repeats and 1 test questions dropped" in printed
    assert json.loads((saved / "metrics.json").read_text())["questions"]["rows"] == 10
    trained = {json.loads(line)["prompt"] for line in (saved / "predictions.jsonl").read_text().splitlines()}
    assert not trained & {each["prompt"] for each in questions}


def test_auxiliary_rows_are_trained_on_and_never_near_a_judged_prompt(run):
    saved, _, printed = run
    judged = set()
    for name in ("predictions.jsonl", "validation_predictions.jsonl"):
        judged |= {normalise_prompt(json.loads(line)["prompt"]) for line in (saved / name).read_text().splitlines()}
    auxiliary = [json.loads(line)["prompt"] for line in (saved.parents[1] / "auxiliary.jsonl").read_text().splitlines()]
    left_out = sum(normalise_prompt(prompt) in judged for prompt in auxiliary)
    counts = json.loads((saved / "run.json").read_text())["rows"]
    assert left_out > 0 and counts["auxiliary"] == len(auxiliary) - left_out
    assert counts["train"] + counts["validation"] + counts["test"] == 240 + counts["auxiliary"]
    assert f"training on {counts['train']} ({counts['auxiliary']} of them auxiliary)" in printed


def test_the_last_line_is_the_next_command(run):
    saved, _, printed = run
    assert printed.strip().splitlines()[-1] == (
        f"next: python3 inference/run_gradio_model.py --model_save_dir {saved} --hf_model_name tiny-bert"
    )
    assert saved.name.startswith("tiny-bert-router-finetuning-2")
    card = (saved / "README.md").read_text()
    assert saved.name in card and "$" not in re.sub(r"`[^`]*`", "", card) and ".unfinished" not in card  # but in frames


def test_same_seed_same_metrics_and_two_processes_do_as_well(run, base, tmp_path):
    saved, _, _ = run
    folder = saved.parents[1]
    one = run_in_process(folder, base, tmp_path / "again")
    assert (one / "metrics.json").read_text() == (saved / "metrics.json").read_text()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = ["--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "two"), "--find_requests"]
    done = subprocess.run(
        [*command, str(ROOT / "finetuning_model" / "finetune_bert.py"), *arguments(folder, base, *more)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (two,) = (tmp_path / "two").glob("*-save")
    auroc = [
        json.loads((each / "metrics.json").read_text())["test"]["figures"]["this router"]["AUROC"]["value"]
        for each in (saved, two)
    ]
    assert abs(auroc[0] - auroc[1]) < 0.08
    assert Router.load(two).request_finder and not Router.load(saved).request_finder


def run_in_process(folder: Path, base: Path, output_dir: Path) -> Path:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, ROOT / "finetuning_model" / "finetune_bert.py"]
    more = ["--output_dir", str(output_dir)]
    done = subprocess.run([*command, *arguments(folder, base, *more)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(output_dir.glob("*-save"))


def test_an_interrupted_run_goes_on_where_it_was(run, base, tmp_path, monkeypatch, capsys):
    from finetuning_model import training

    folder = run[0].parents[1]

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "add_logit_bias", stopped)
    more = ("--output_dir", str(tmp_path), "--num_train_epochs", "2", "--find_requests")
    with pytest.raises(KeyboardInterrupt):
        finetune_bert.main(arguments(folder, base, *more))
    (unfinished,) = tmp_path.glob("*.unfinished")
    assert newest_trainer_state(unfinished / "seed-0")
    finder = (unfinished / REQUEST_FINDER_FILE).stat().st_mtime_ns
    assert f"--resume_from_checkpoint {unfinished}" in capsys.readouterr().out
    monkeypatch.undo()
    finished = finetune_bert.main(arguments(folder, base, *more, "--resume_from_checkpoint", str(unfinished)))
    assert finished == unfinished.with_name(unfinished.name.removesuffix(".unfinished")) and not unfinished.exists()
    assert (finished / REQUEST_FINDER_FILE).stat().st_mtime_ns == finder


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    program = (
        "import resource, sys; import numpy as np; from finetuning_model import finetune_bert;"
        "sys.argv[1] == 'keep' and finetune_bert.keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "step = lambda: [np.ones(size << 17) for size in (64, 33, 7)].clear();"  # of so many MB
        "step(); before = faults(); [step() for _ in range(10)]; print(faults() - before)"
    )
    faults = {
        way: int(subprocess.run([sys.executable, "-c", program, way], cwd=ROOT, capture_output=True, check=True).stdout)
        for way in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--train_files", "nowhere.jsonl"], "no such file: nowhere.jsonl"),
        (["--hf_model_name", "no-such-org/no-such-model"], "no-such-org/no-such-model can't be had.*--hf_model_name"),
        (["--resume_from_checkpoint", "nowhere.unfinished"], "no unfinished run at nowhere.unfinished"),
        (["--find_requests", "--frame_share", "0"], "--find_requests learns from frames"),
        (["--unlabelled_files", "log.jsonl"], "--unlabelled_files are for a router to go on from; .*--hf_model_name"),
        (["--unlabelled_files", "log.jsonl", "--like_prompts", "0"], "--like_prompts .* give a number above 0"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--limit", "8"], "too few"),
    ],
)
def test_bad_input_is_one_clear_line(run, base, change, says):
    with pytest.raises(InputError, match=says) as error:
        finetune_bert.main([*arguments(run[0].parents[1], base), *change])
    assert "\n" not in str(error.value)


def test_no_labelled_prompts_names_stage_2_and_the_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="create_dataset/label_prompts.py.*router_dataset_sample.jsonl"):
        finetune_bert.main([])


def test_help_is_light():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path(sys.path.pop(), run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'gradio'} & set(sys.modules), 'heavy import'"
    )
    script = ROOT / "finetuning_model" / "finetune_bert.py"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(script)!r})\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--num_seeds" in done.stdout
