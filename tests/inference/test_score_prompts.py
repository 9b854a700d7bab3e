"""Batch scoring: every input gives the same scores, in order; a stopped run goes on; the summary's sums are right."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import EASY, HARD, ROOT

from finetuning_model.export_onnx import export_onnx
from inference import score_prompts
from router_data import InputError
from router_model import Router

SCRIPT = ROOT / "inference" / "score_prompts.py"
PROMPTS = [f"what is the {word} with a {EASY[i % 6]}" for i, word in enumerate([*EASY, *HARD] * 4)]
HARD_COUNT = 12
LONG = " ".join(EASY * 30)


@pytest.fixture(scope="module")
def checkpoint(trained_checkpoint, tmp_path_factory):
    folder = shutil.copytree(trained_checkpoint, tmp_path_factory.mktemp("scoring") / trained_checkpoint.name)
    export_onnx(folder, PROMPTS, [any(word in prompt for word in HARD) for prompt in PROMPTS], say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    return [round(float(score), 6) for score in Router.load(checkpoint).score(PROMPTS)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": p, "note": None}) + "\n" for i, p in enumerate(PROMPTS)))
    return path


def run(checkpoint, source, output, *flags):
    score_prompts.main(["--model_save_dir", str(checkpoint), "--input", str(source), "--output", str(output), *flags])
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_keep_their_order_and_fields(checkpoint, jsonl, tmp_path, expected):
    rows = run(checkpoint, jsonl, tmp_path / "new" / "scored.jsonl")
    assert [(row["id"], row["prompt"], row["note"]) for row in rows] == [(i, p, None) for i, p in enumerate(PROMPTS)]
    assert [row["router_score"] for row in rows] == expected
    for row in rows:
        assert row["routed_to"] == ("superior" if any(word in row["prompt"] for word in HARD) else "inferior")
        assert (row["truncated"], row["characters_received"]) == (False, len(row["prompt"]))
        assert (row["threshold"], row["long_prompt_policy"], row["router"]) == (0.5, "head_tail", checkpoint.name)


def as_csv(path):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "n"], *([prompt, 1] for prompt in PROMPTS)])


def as_parquet(path):
    import pandas

    numbers = [float("nan"), *range(len(PROMPTS) - 1)]
    day = pandas.Timestamp("2026-01-01")
    pandas.DataFrame({"question": PROMPTS, "n": numbers, "day": day}).to_parquet(path)


def as_conversations(path):
    system = {"role": "system", "content": "zorp vlam quix"}
    rows = [{"messages": [system, {"role": "user", "content": prompt}]} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "write"), [("p.csv", as_csv), ("p.parquet", as_parquet), ("c.jsonl", as_conversations)]
)
def test_every_kind_of_file_gives_the_same_scores(checkpoint, tmp_path, expected, name, write):
    write(tmp_path / name)
    rows = run(checkpoint, tmp_path / name, tmp_path / "scored.jsonl")
    assert [row["router_score"] for row in rows] == expected


def test_standard_input_takes_lines_and_rows(checkpoint, expected):
    lines = [PROMPTS[0], "", json.dumps({"id": 7, "prompt": PROMPTS[1]}), "{not json"]
    command = [sys.executable, str(SCRIPT), "--model_save_dir", str(checkpoint)]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPTS[0], PROMPTS[1], "{not json"]
    assert [row["router_score"] for row in rows[:2]] == expected[:2] and rows[1]["id"] == 7
    assert "3 prompts: " in done.stderr


def test_blank_and_long_prompts(checkpoint, tmp_path, capsys):
    source = tmp_path / "prompts.jsonl"
    prompts = ["", "  ", None, LONG, [{"role": "user", "content": " "}], "apple"]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    rows = run(checkpoint, source, tmp_path / "scored.jsonl")
    assert [row["routed_to"] for row in rows] == [None, None, None, "inferior", None, "inferior"]
    assert [row["router_score"] is None for row in rows] == [True, True, True, False, True, False]
    assert (rows[3]["truncated"], rows[3]["tokens_scored"], rows[3]["characters_received"]) == (True, 64, len(LONG))
    assert "1 too long to score whole, 4 blank" in capsys.readouterr().err


@pytest.mark.parametrize("torn", [0, 1, 300, 2000, -1, -40])
def test_a_stopped_run_goes_on_where_it_was(checkpoint, jsonl, tmp_path, torn, monkeypatch):
    output = tmp_path / "scored.jsonl"
    run(checkpoint, jsonl, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:torn])
    there = whole[:torn].count(b"\n")

    scored = []
    score_rows = score_prompts.score_rows
    monkeypatch.setattr(score_prompts, "score_rows", lambda *args: scored.extend(args[1]) or score_rows(*args))
    run(checkpoint, jsonl, output)
    assert output.read_bytes() == whole
    assert [row["id"] for row in scored] == list(range(there, len(PROMPTS)))


def test_only_the_same_run_is_resumed(checkpoint, jsonl, tmp_path):
    output = tmp_path / "scored.jsonl"
    run(checkpoint, jsonl, output)
    before = output.read_bytes()
    with pytest.raises(InputError, match="line 1, is of another input, router or threshold"):
        run(checkpoint, jsonl, output, "--threshold", "0.9")
    other = tmp_path / "other.jsonl"
    other.write_text(jsonl.read_text().replace('"id": 5', '"id": 500'))
    with pytest.raises(InputError, match="line 6, is of another input"):
        run(checkpoint, other, output)
    assert output.read_bytes() == before

    with pytest.raises(InputError, match="holds something else"):
        run(checkpoint, other, jsonl)
    assert len(jsonl.read_text().splitlines()) == len(PROMPTS)


def test_money(checkpoint, jsonl, tmp_path, capsys):
    run(checkpoint, jsonl, tmp_path / "scored.jsonl", "--price_superior", "1000", "--price_inferior", "100")
    said = capsys.readouterr().err
    inferior = len(PROMPTS) - HARD_COUNT
    assert f"{len(PROMPTS)} prompts: {HARD_COUNT} (33.3%) to the superior model, {inferior} (66.7%)" in said
    assert f"costs {HARD_COUNT * 1 + inferior * 0.1:.2f} instead of {len(PROMPTS):.2f}" in said
    assert "60.0% saved" in said


def test_threshold_moves_the_route_not_the_score(checkpoint, jsonl, tmp_path, expected):
    rows = run(checkpoint, jsonl, tmp_path / "scored.jsonl", "--threshold", "0")
    assert {row["routed_to"] for row in rows} == {"superior"} and [row["router_score"] for row in rows] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text_of_it": "hi"}, r"row 2: no prompt, but text_of_it; name the prompt's column with --prompt_column"),
        ({"prompt": 3}, "row 2: prompt is neither a text nor a list of messages: 3"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "row 2: the conversation has no message of the user"),
    ],
)
def test_a_row_without_a_prompt_is_named(checkpoint, tmp_path, row, message):
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": "hi"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        run(checkpoint, source, tmp_path / "scored.jsonl")


def test_a_named_column(checkpoint, tmp_path, expected):
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": "no", "asked": PROMPTS[0]}) + "\n")
    rows = run(checkpoint, source, tmp_path / "scored.jsonl", "--prompt_column", "asked")
    assert rows[0]["router_score"] == expected[0]


def test_input_is_read_a_window_at_a_time():
    taken = []

    def rows(characters):
        for number in range(10**6):
            taken.append(number)
            yield {"prompt": "x" * characters}

    next(score_prompts.windows(rows(3)))
    assert len(taken) == score_prompts.WINDOW_ROWS
    taken.clear()
    next(score_prompts.windows(rows(2_000_000)))
    assert len(taken) == score_prompts.WINDOW_CHARACTERS / 2_000_000


def test_help_and_faults_need_no_heavy_import(checkpoint):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import {0} as program\n"
        "heavy = {{'torch', 'transformers', 'datasets', 'gradio', 'ray'}}\n"
        "try: program.main(['--help'])\n"
        "except SystemExit: print(sorted(heavy & set(sys.modules)))\n"
    )
    for module in (
        "inference.score_prompts",
        "inference.score_prompts_ray",
        "finetuning_model.export_onnx",
        "benchmarks.decision",
    ):
        command = [sys.executable, "-c", code.format(module)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "--model_save_dir" in out and out.endswith("[]\n")
    command = [sys.executable, str(SCRIPT), "--model_save_dir", str(checkpoint), "--input", "nowhere.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: no such file: nowhere.jsonl"


def test_dialogues_are_what_their_description_says():
    path = ROOT / "tests" / "data" / "dialogues.jsonl"
    dialogues = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    expected = [dialogue["expected"] for dialogue in dialogues]
    assert expected.count("superior") == 30 and expected.count("inferior") == 10
    assert all(dialogue["messages"][-1]["role"] == "user" for dialogue in dialogues)
    assert all(len(dialogue["messages"][-1]["content"]) <= 40 for dialogue in dialogues)


def test_a_follow_up_stays_with_its_question():
    """On the newest router of the demo, where one was made."""
    checkpoints = sorted((ROOT / "models").glob("all-MiniLM-L6-v2-router-finetuning-*-save"))
    if not checkpoints:
        pytest.skip("needs a checkpoint of the demo: make demo")
    router = Router.load(checkpoints[-1])
    path = ROOT / "tests" / "data" / "dialogues.jsonl"
    dialogues = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = router.score([dialogue["messages"] for dialogue in dialogues])
    wrong = [
        (dialogue["topic"], round(score, 2))
        for dialogue, score in zip(dialogues, scores, strict=True)
        if (score >= 0.5) != (dialogue["expected"] == "superior")
    ]
    assert len(wrong) <= 1, wrong


@pytest.mark.skipif(sys.platform == "win32", reason="Ray")
def test_two_ray_workers_write_what_one_script_writes(checkpoint, jsonl, tmp_path):
    pytest.importorskip("ray", reason="optional: pip install -r requirements/ray.txt")
    rows = run(checkpoint, jsonl, tmp_path / "scored.jsonl")
    script = ROOT / "inference" / "score_prompts_ray.py"
    flags = ["--model_save_dir", checkpoint, "--input", jsonl, "--output", tmp_path / "by_ray", "--num_workers", "2"]
    subprocess.run([sys.executable, script, *flags], check=True, capture_output=True, env=os.environ, timeout=300)
    written = io.StringIO("".join(path.read_text() for path in sorted((tmp_path / "by_ray").glob("*.json"))))
    assert [json.loads(line) for line in written] == rows
