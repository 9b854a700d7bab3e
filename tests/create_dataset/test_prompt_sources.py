"""Prompts of any data set: reading, filters, and a draw by seed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from labelling_runs import label
from local_hub import LocalHub

from create_dataset import label_prompts, prompt_sources
from prompt_files import Record, read_records
from router_data import InputError, normalise_prompt

SHARED_DATA = Path(os.environ.get("ROUTER_SHARED_DATA", "no-shared-data"))


def lmsys_row(text, **fields) -> dict:
    row = {"conversation_id": "c", "model": "v", "turn": 1, "language": "English", "redacted": False}
    row["conversation"] = [{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}]
    row["openai_moderation"] = [{"flagged": False}]
    return row | fields


def drawn_from(rows: list[dict], limit=0, seed=0, near=False, **settings):
    filters = prompt_sources.Filters(**settings)
    kept = filters.prompts(Record(row, "s", i) for i, row in enumerate(rows, 1))
    return prompt_sources.DrawnPrompts(kept, limit, seed, near), filters


def test_filters_count_every_reason():
    data = [
        lmsys_row("Keep me", conversation_id="first"),
        lmsys_row("keep  ME\n"),
        lmsys_row("bad", openai_moderation=[{"flagged": False}, {"flagged": True}]),
        lmsys_row("Dear NAME_1", redacted=True),
        lmsys_row("Guten Tag", language="German"),
        lmsys_row("  \n"),
        lmsys_row("x", conversation=[]),
        lmsys_row(None),
        lmsys_row("x", conversation=17),
        lmsys_row("a" * 51),
        lmsys_row("What is  the benchmark's question?"),
    ]
    drawn, filters = drawn_from(
        data,
        languages=frozenset({"english"}),
        max_characters=50,
        excluded_keys=frozenset({normalise_prompt("what is the Benchmark's question?")}),
    )
    assert [(p.text, p.source_id) for p in drawn] == [("Keep me", "first")] and drawn.repeats == 1
    assert dict(filters.dropped) == {
        "flagged by moderation": 1,
        "redacted": 1,
        "other language": 1,
        "blank or no prompt": 4,
        "longer than 50 characters": 1,
        "MT-Bench question": 1,
    }


def test_a_draw_is_by_seed_not_by_order_and_a_larger_one_contains_it():
    data = [{"prompt": f"p {i}"} for i in range(5000)]
    texts = lambda records, **settings: [p.text for p in drawn_from(records, **settings)[0]]  # noqa: E731
    small = texts(data, limit=50)
    assert len(set(small)) == 50
    assert small == texts(data[::-1], limit=50) == texts(data, limit=2000)[:50] == texts(data)[:50]
    assert small != texts(data, limit=50, seed=1)
    assert 1800 < sum(int(t.split()[1]) for t in texts(data, limit=1000)) / 1000 < 3200, "not spread over the file"


def test_a_seed_draws_what_it_always_drew():
    """Otherwise a run of an earlier version, resumed, would draw and pay for other prompts."""
    assert [p.text for p in drawn_from([{"prompt": f"p {i}"} for i in range(100)], limit=5)[0]] == [
        "p 36", "p 23", "p 5", "p 47", "p 44"
    ]  # fmt: skip


def test_what_is_done_is_left_out_and_odd_characters_come_back():
    odd = ["null \0 byte", "lone \ud800 surrogate", "emoji 🦊", "line\u2028separator", 'quo"te']
    drawn, _ = drawn_from([{"prompt": text, "id": "\udfff"} for text in odd])
    assert {p.text for p in drawn} == {text.encode("utf-8", "replace").decode() for text in odd}
    drawn.leave_out({prompt_sources.dedup_key("EMOJI  🦊")})
    assert len(drawn) == 4 == len(list(drawn)) and "emoji 🦊" not in {p.text for p in drawn}


def test_near_duplicates_are_drawn_once():
    story = "Please write a long and winding story about a dragon who could not sleep at night because of the moon"
    data = [{"prompt": story + end} for end in (".", "!", " ?")] + [{"prompt": "What is the capital of France?"}]
    drawn, _ = drawn_from(data, near=True)
    assert len(drawn) == 2 and drawn.near_duplicates == 2
    assert len(drawn_from(data)[0]) == 4


def dry_run(*words: str) -> int:
    return label_prompts.main([*words, "--labelling_prompt", "labelling.txt", "--dry_run", "--model", "m"])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json"])
def test_files_of_every_kind(kind, capsys):
    import pandas

    frame = pandas.DataFrame({"question": ["one\nline two", "zwei, drei", "one\nline two"], "id": ["a", "b", "c"]})
    path = f"data.{kind}"
    if kind in ("json", "jsonl"):
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    else:
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    assert dry_run("--dataset", path) == 0
    said = capsys.readouterr().out
    assert "3 rows, 2 pass" in said and re.search(r"dropped +1 +repeated", said) and "2 rows to label" in said


def test_several_files_and_globs_are_read_as_one(capsys):
    for name in ("a1", "a2", "b"):
        Path(f"{name}.jsonl").write_text(f'{{"prompt": "of {name}"}}\n{{"prompt": "shared"}}\n')
    assert label("--dataset", "a*.jsonl", "b.jsonl", "--dry_run") == 0
    assert "6 rows, 4 pass" in capsys.readouterr().out


def test_languages_lengths_and_near_duplicates_by_flag(capsys):
    rows = [lmsys_row("Guten Tag", language="German"), lmsys_row("Hello there"), lmsys_row("Hello there!")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, lmsys_row("x" * 100)]))
    assert (
        label("--languages", "german", "english", "--max_characters", "50", "--drop_near_duplicates", "--dry_run") == 0
    )
    said = capsys.readouterr().out
    assert "longer than 50 characters" in said and re.search(r"1 +nearly alike", said) and "2 rows to label" in said
    assert label("--languages", "all", "--dry_run") == 0 and "4 rows to label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "a"}\nnot json\n', "line 2"),
        ('{"prompt": "a"}\n[1]\n', "line 2"),
        ('{"colour": "red", "size": 1}\n', "prompts.jsonl, row 1: .*--prompt_column"),
        ("", "is empty"),
    ],
)
def test_bad_data_is_named(content, expected):
    Path("prompts.jsonl").write_text(content)
    with pytest.raises(InputError, match=expected):
        label("--dry_run")


def test_a_data_set_that_is_dropped_whole_says_why_and_fails(capsys):
    rows = [lmsys_row(f"Frage {i}", language="German") for i in range(3)] + [lmsys_row(" ")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InputError, match="no prompts in prompts.jsonl: all 4 rows were dropped, most as: other language"
    ):
        label("--dry_run")
    assert re.search(r"dropped +3 +other language", capsys.readouterr().out)


def test_missing_files_are_named():
    with pytest.raises(InputError, match="no such file: prompts.jsonl"):
        label("--dry_run")


@pytest.mark.parametrize(
    ("flags", "message"), [(["--limit", "-1"], "--limit"), (["--max_characters", "0"], "--max_ch")]
)
def test_flags_that_cannot_work_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        label(*flags)


def test_a_gated_data_set_names_its_page_and_the_token(monkeypatch):
    import datasets

    def gated(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'lmsys/lmsys-chat-1m' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(InputError, match=r"huggingface\.co/datasets/lmsys/lmsys-chat-1m.*HF_TOKEN"):
        label("--dataset", "lmsys/lmsys-chat-1m", "--dry_run")


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the development data (ROUTER_SHARED_DATA)")
def test_the_lmsys_shape():
    drawn, filters = drawn_from(
        [record.fields for record in read_records([str(SHARED_DATA / "lmsys_chat_1m_sample.jsonl")])],
        languages=frozenset({"english"}),
    )
    assert filters.rows == 1333
    assert filters.dropped["redacted"] == 8 and filters.dropped["flagged by moderation"] == 10
    assert (
        len(drawn) == 1333 - filters.dropped.total() - drawn.repeats == len({normalise_prompt(p.text) for p in drawn})
    )


def project_copy(folder: Path, env: str) -> Path:
    """The project with a .env; it lies beside router_data.py, so that is copied too."""
    for name in ("create_dataset", "dataset_analysis"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("router_data.py", "prompt_files.py"):
        shutil.copy(ROOT / name, folder)
    (folder / ".env").write_text(env)
    return folder


@pytest.mark.slow
def test_token_and_address_of_the_hub_come_from_env(tmp_path):
    """The hub's libraries read them when they are imported, so .env must be read before."""
    rows = "".join(json.dumps({"prompt": f"q {i}"}) + "\n" for i in range(5)).encode()
    words = "--dataset me/rows --labelling_prompt labelling.txt --model m --dry_run".split()
    with LocalHub({"me/rows": {"train.jsonl": rows}}, gated=frozenset({"me/rows"})) as hub:
        copy = project_copy(tmp_path / "project", f"HF_ENDPOINT={hub.url}\nHF_TOKEN=hf_of_the_test\n")
        environment = {**os.environ, **hub.environment(tmp_path / "cache")}
        del environment["HF_ENDPOINT"]
        command = [sys.executable, copy / "create_dataset" / "label_prompts.py", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "5 rows to label" in done.stdout, done.stderr
        (copy / ".env").write_text(f"HF_ENDPOINT={hub.url}\n")
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and "HF_TOKEN in .env" in done.stderr and done.stdout.count("\n") <= 1
        before = len(hub.asked)
        command = [sys.executable, copy / "dataset_analysis" / "analyse_human_judgments.py", "--output_dir", "out"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and "cannot read lmsys/mt_bench_human_judgments" in done.stderr
        assert len(hub.asked) > before, "stage 1 asks the address in .env"


def test_a_hub_that_stays_cut_is_given_up_and_named(monkeypatch):
    import datasets

    def cut(*_, **__):
        assert datasets.config.STREAMING_READ_MAX_RETRIES == datasets.config.STREAMING_OPEN_MAX_RETRIES == 3
        yield {"prompt": "one"}
        raise ConnectionError("Server Disconnected")

    monkeypatch.setattr(datasets, "load_dataset", cut)
    with pytest.raises(InputError, match=r"cannot read me/rows from the hub \(Server Disconnected\)"):
        label("--dataset", "me/rows", "--dry_run")
