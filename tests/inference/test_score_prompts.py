"""Batch scoring: every input gives the same scores, in order; a stopped run goes on; the summary's sums are right."""

import csv
import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import EASY, HARD, ROOT

from finetuning_model.export_onnx import export_onnx
from inference import score_prompts
from inference.score_prompts_ray import Scorer
from prompt_files import Record
from router_data import INFERIOR, SUPERIOR, InputError, RouterAnswer
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


@pytest.fixture
def router(checkpoint):
    return Router.load(checkpoint)


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
        assert row["router_label"] == (SUPERIOR if any(word in row["prompt"] for word in HARD) else INFERIOR)
        assert (row["truncated"], row["unfamiliar"], row["characters_received"]) == (False, False, len(row["prompt"]))
        assert (row["threshold"], row["router"]) == (0.5, checkpoint.name)
        RouterAnswer.model_validate(row)


def test_a_row_says_where_the_request_alone_was_scored(finding_router):
    texts = ["zorp zorp please open the door", "please open the door"]
    records = [Record({"prompt": text}, "prompts.jsonl", number) for number, text in enumerate(texts, 1)]
    rows = score_prompts.score_rows(finding_router, records, 0.5, None, print)
    assert [row["framed"] for row in rows] == [True, False] and rows[0]["router_score"] == rows[1]["router_score"]


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
    assert [row["router_label"] for row in rows] == [None, None, None, INFERIOR, None, INFERIOR]
    assert [row["router_score"] is None for row in rows] == [True, True, True, False, True, False]
    assert (rows[3]["truncated"], rows[3]["tokens_scored"], rows[3]["characters_received"]) == (True, 64, len(LONG))
    assert "1 too long to score whole, 0 unfamiliar; 4 rows without a prompt" in capsys.readouterr().err


@pytest.mark.parametrize("torn", [0, 400, 2000, -1, -40])
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
    assert [record.fields["id"] for record in scored] == list(range(there, len(PROMPTS)))


def test_scored_rows_are_scored_anew_and_resumed(checkpoint, tmp_path):
    source = tmp_path / "scored.jsonl"
    old = {"router_score": 0.9, "routed_to": "superior", "router_label": SUPERIOR, "threshold": 0.35}
    source.write_text("".join(json.dumps({"prompt": prompt, **old}) + "\n" for prompt in PROMPTS[:2]))
    rows = run(checkpoint, source, tmp_path / "again.jsonl")
    assert [row["threshold"] for row in rows] == [0.5, 0.5] and rows[0]["routed_to"] == "superior"
    assert run(checkpoint, source, tmp_path / "again.jsonl") == rows


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


@pytest.mark.parametrize("content", [b"OPENAI_API_KEY=sk-1", b"a\nb", b'{"prompt": "x"}', b'{"router_score": 1}\n'])
def test_a_file_of_something_else_stays_as_it_is(checkpoint, jsonl, tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(InputError, match="holds something else"):
        run(checkpoint, jsonl, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == content


def test_input_links_and_devices_are_no_output(checkpoint, jsonl, tmp_path):
    before = jsonl.read_bytes()
    (tmp_path / "link").symlink_to(jsonl)
    (tmp_path / "hard_link").hardlink_to(jsonl)
    for name, message in [
        ("prompts.jsonl", "is the input itself"),
        ("hard_link", "is the input"),
        ("link", "no plain"),
    ]:
        with pytest.raises(InputError, match=message.replace("no plain", "is not a plain file")):
            run(checkpoint, jsonl, tmp_path / name)
    with pytest.raises(InputError, match="is not a plain file"):
        score_prompts.main(["--input", str(jsonl), "--output", "/dev/null"])
    assert jsonl.read_bytes() == before


def test_money(checkpoint, jsonl, tmp_path, capsys):
    prices = ["--price_superior", "1000", "--price_inferior", "100", "--tokens_per_prompt", "1000"]
    run(checkpoint, jsonl, tmp_path / "scored.jsonl", *prices)
    summary = capsys.readouterr().err
    inferior = len(PROMPTS) - HARD_COUNT
    assert f"{len(PROMPTS)} prompts: {HARD_COUNT} (33.3%) to the superior model, {inferior} (66.7%)" in summary
    assert f"costs ${HARD_COUNT * 1 + inferior * 0.1:.2f} instead of ${len(PROMPTS):.2f}" in summary
    assert "60.0% saved" in summary
    run(checkpoint, jsonl, tmp_path / "scored.jsonl", "--price_superior", "1", "--price_inferior", "2")
    assert "66.7% more" in capsys.readouterr().err


def test_the_last_line_is_the_next_command(checkpoint, jsonl, tmp_path, capsys):
    run(checkpoint, jsonl, tmp_path / "scored.jsonl")
    last = capsys.readouterr().out.splitlines()[-1]
    command = "next: python3 finetuning_model/choose_threshold.py"
    assert last == f"{command} --model_save_dir {checkpoint} --prompts {jsonl}"


def test_threshold_moves_the_route_not_the_score(checkpoint, jsonl, tmp_path, expected):
    rows = run(checkpoint, jsonl, tmp_path / "scored.jsonl", "--threshold", "0")
    assert {row["router_label"] for row in rows} == {SUPERIOR} and [row["router_score"] for row in rows] == expected


@pytest.mark.parametrize("threshold", ["nan", "7", "-1"])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(InputError, match="is not between 0 and 1"):
        score_prompts.main(["--threshold", threshold])


def test_rows_that_cannot_be_read_are_named_and_passed_over(checkpoint, tmp_path, expected, capsys):
    source = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": PROMPTS[0]},
        {"prompt": 3},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"a": 1, "b": 2},
    ]
    text = (
        "".join(json.dumps(row) + "\n" for row in rows)
        + '{"prompt": "half\n'
        + json.dumps({"prompt": PROMPTS[1]})
        + "\n"
    )
    source.write_text(text)
    written = run(checkpoint, source, tmp_path / "scored.jsonl")
    assert [row["router_score"] for row in written] == [expected[0], None, None, None, expected[1]]
    messages = capsys.readouterr().err
    for message in (
        "row 2: prompt is neither a text nor a list of messages: 3",
        "row 4: no prompt among the columns a, b",
        "line 5: not JSON",
        "3 rows without a prompt, 3 rows or prompts that can't be read",
    ):
        assert message in messages
    assert run(checkpoint, source, tmp_path / "scored.jsonl") == written  # all there already, bad line and all


def test_a_file_without_a_prompt_column_ends_before_anything_is_scored(checkpoint, tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"a": "hi", "b": "ho"}\n')
    with pytest.raises(InputError, match="no prompt among the columns a, b; name it with --prompt_column"):
        run(checkpoint, source, tmp_path / "scored.jsonl")
    with pytest.raises(InputError, match="no column 'c', but a, b"):
        run(checkpoint, source, tmp_path / "scored.jsonl", "--prompt_column", "c")
    assert not (tmp_path / "scored.jsonl").exists()


def test_a_named_column(checkpoint, tmp_path, expected):
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": "no", "asked": PROMPTS[0]}) + "\n")
    rows = run(checkpoint, source, tmp_path / "scored.jsonl", "--prompt_column", "asked")
    assert rows[0]["router_score"] == expected[0]


def test_input_is_read_a_batch_at_a_time():
    taken = []

    def rows(characters):
        for number in range(10**6):
            taken.append(number)
            yield Record({"prompt": "x" * characters}, "file", number)

    next(score_prompts.batches(rows(3)))
    assert len(taken) == score_prompts.BATCH_ROWS
    taken.clear()
    next(score_prompts.batches(rows(2_000_000)))
    assert len(taken) == score_prompts.BATCH_CHARACTERS / 2_000_000


def test_one_text_or_one_conversation_is_one_prompt(checkpoint, expected):
    router = Router.load(checkpoint)
    (decision,) = router.decide(PROMPTS[0])
    assert round(decision.router_score, 6) == expected[0]
    assert (
        router.score([{"role": "user", "content": PROMPTS[0]}])
        == router.score([PROMPTS[0]])
        == router.score(PROMPTS[0])
    )


@pytest.mark.slow
def test_a_missing_file_is_one_line(checkpoint):
    command = [sys.executable, str(SCRIPT), "--model_save_dir", str(checkpoint), "--input", "nowhere.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: no such file: nowhere.jsonl\n"


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


@pytest.mark.slow
def test_a_ray_worker_reads_columns_that_are_empty_throughout(checkpoint):
    score = Scorer(str(checkpoint), None, 0.5, None)
    nothing, row = np.full(1, np.nan), np.array(['{"prompt": "the apple"}'], dtype=object)
    scored = score({"fields": row, "source": ["f"], "number": [1], "problem": nothing})
    assert json.loads(scored["line"][0])["prompt"] == "the apple" and scored["problem"] == [None]
    unreadable = {"fields": nothing, "source": nothing, "number": [0], "problem": np.array(["line 1"], dtype=object)}
    assert score(unreadable) == {"line": [None], "problem": ["line 1"]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ray calls its support of Windows a beta; not tried there")
def test_two_ray_workers_write_what_one_script_writes(checkpoint, jsonl, tmp_path):
    pytest.importorskip("ray", reason="optional: pip install -r requirements/ray.txt")
    source = tmp_path / "log.jsonl.gz"
    bad = json.dumps({"prompt": 5}) + '\n{"prompt": "half\n' + json.dumps({"messages": []}) + "\n"
    source.write_bytes(gzip.compress((jsonl.read_text() + bad).encode()))
    rows = run(checkpoint, source, tmp_path / "scored.jsonl")
    script = ROOT / "inference" / "score_prompts_ray.py"
    flags = ["--model_save_dir", checkpoint, "--input", source, "--output", tmp_path / "by_ray", "--num_workers", "2"]
    done = subprocess.run([sys.executable, script, *flags], check=True, capture_output=True, text=True, timeout=300)
    written = "".join(path.read_text() for path in sorted((tmp_path / "by_ray").glob("*.jsonl")))
    assert [json.loads(line) for line in written.splitlines()] == rows
    assert f"line {len(PROMPTS) + 2}: not JSON" in done.stderr
    assert f"row {len(PROMPTS) + 1}: prompt is neither" in done.stderr
    assert "Traceback" not in done.stderr
