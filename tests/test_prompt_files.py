"""Files of prompts as people have them: every kind gives the same prompts; what can't be read is named."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prompt_files
from prompt_files import MAX_LINE_CHARACTERS, first_user_turn, is_local, prompt_column, prompt_in, read_records
from router_data import InputError

PROMPTS = [
    "What is a kettle?",
    'Say "hello";\nthen leave, please',
    "Übersetze: schöne Grüße",
    "2 | 3",
    "line\u2028kept",
]
OPENAI = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def prompts_of(*paths: Path, column: str | None = None) -> list:
    return [prompt_in(record.fields, column) for record in read_records(paths)]


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter: str, encoding: str = "utf-8", header: str = "prompt") -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["no", header, "team"], *([i, prompt, "a"] for i, prompt in enumerate(PROMPTS))])
    return file.getvalue().encode(encoding, "replace")


def workbook(more: str = "") -> bytes:
    from zipfile import ZipFile

    cells = "".join(
        f'<row><c t="inlineStr"><is><t>{a}</t></is></c><c t="inlineStr"><is><t xml:space="preserve">{b}</t></is></c>'
        "</row>"
        for a, b in [("no", "prompt"), *((i, p.replace('"', "&quot;")) for i, p in enumerate(PROMPTS))]
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType="{kind}.sheet.main+xml"/>'
            f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r" Type="{office}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="Prompts" sheetId="1" r:id="r1"/>'
            "</sheets></workbook>",
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}/worksheet" '
            'Target="worksheets/sheet1.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{main}"><sheetData>{cells}{more}</sheetData></worksheet>',
        )
    return file.getvalue()


def parquet() -> bytes:
    import pandas

    file = io.BytesIO()
    pandas.DataFrame({"question": PROMPTS, "when": pandas.Timestamp("2026-01-01"), "n": float("nan")}).to_parquet(file)
    return file.getvalue()


def utf16_lines(encoding: str) -> bytes:
    return lines(*({"prompt": p} for p in PROMPTS)).decode().encode(encoding)


ARRAY = json.dumps([{"id": i, "prompt": p} for i, p in enumerate(PROMPTS)], indent=1).encode()
FILES = {
    "a.jsonl": lines(*({"prompt": p} for p in PROMPTS)),
    "BOM.JSONL": b"\xef\xbb\xbf" + lines(*({"Prompt": p} for p in PROMPTS)),
    "texts.jsonl": lines(*PROMPTS),
    "utf16.jsonl": utf16_lines("utf-16"),
    "no-mark.jsonl": utf16_lines("utf-16-le"),
    "utf32.ndjson": utf16_lines("utf-32"),
    "a.jsonl.gz": gzip.compress(lines(*({"prompt": p} for p in PROMPTS))),
    "comma.csv": table(","),
    "semicolon.csv": table(";"),
    "bars.csv": table("|", header="User Prompt"),
    "hint.csv": b"sep=;\r\n" + table(";"),
    "tab.tsv": table("\t"),
    "excel.csv": table("\t", "utf-16", "PROMPT"),
    "bom.csv.gz": gzip.compress(table(";", "utf-8-sig", "Question")),
    "array.json": ARRAY,
    "array.jsonl": ARRAY,
    "texts.json": json.dumps(PROMPTS).encode(),
    "holder.json": json.dumps({"version": 1, "data": [{"prompt": p} for p in PROMPTS]}, indent=1).encode(),
    "book.xlsx": workbook(),
    "a.parquet": parquet(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert is_local(str(tmp_path / name)) and prompts_of(tmp_path / name) == PROMPTS


def test_the_other_columns_come_as_json_can_hold_them(tmp_path):
    (tmp_path / "a.csv").write_bytes(table(";"))
    (tmp_path / "a.parquet").write_bytes(parquet())
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "n": NaN}\n')
    assert next(read_records([tmp_path / "a.csv"])).fields == {"no": "0", "prompt": PROMPTS[0], "team": "a"}
    fields = next(read_records([tmp_path / "a.parquet"])).fields
    assert fields == {"question": PROMPTS[0], "when": "2026-01-01 00:00:00", "n": None}
    assert next(read_records([tmp_path / "a.jsonl"])).fields == {"prompt": "x", "n": None}


def test_windows_own_encoding_is_found_and_said(tmp_path):
    (tmp_path / "a.csv").write_bytes("no;prompt\n1;schöne Grüße\n2;10 €\n".encode("cp1252"))
    said: list[str] = []
    assert [r.fields["prompt"] for r in read_records([tmp_path / "a.csv"], say=said.append)] == ["schöne Grüße", "10 €"]
    assert said == ["a.csv: CSV with semicolons, read as Windows-1252"]
    (tmp_path / "b.csv").write_text("prompt\nwho, what and when?\nwhy\n")
    (tmp_path / "c.csv").write_text("sep=^\nno^prompt\n1^why\n")
    said.clear()
    assert len(list(read_records([tmp_path / "b.csv", tmp_path / "c.csv"], say=said.append))) == 3
    assert said == ["b.csv: one column, read as UTF-8", "c.csv: CSV with '^', read as UTF-8"]
    (tmp_path / "a.txt").write_bytes("Grüße\r\n\r\nnoch eins\r\n".encode("cp1252"))
    assert prompts_of(tmp_path / "a.txt") == ["Grüße", "noch eins"]


def test_one_column_needs_no_delimiter_and_no_usual_name(tmp_path):
    (tmp_path / "a.csv").write_text('frage\nwas, wie; warum?\n"noch, eine"\n')
    assert prompts_of(tmp_path / "a.csv") == ["was, wie; warum?", "noch, eine"]


def test_columns_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,note,note,note\nx,1,2,3\n")
    assert next(read_records([tmp_path / "a.csv"])).fields == {
        "prompt": "x",
        "note": "1",
        "note (2)": "2",
        "note (3)": "3",
    }


def test_a_folder_of_the_hub_and_one_of_save_to_disk_are_read(tmp_path):
    import datasets

    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / ".cache").mkdir()
    (tmp_path / "hub" / "README.md").write_text("a card")
    (tmp_path / "hub" / ".cache" / "x.parquet").write_bytes(b"")
    (tmp_path / "hub" / "data" / "train.parquet").write_bytes(parquet())
    assert prompts_of(tmp_path / "hub") == PROMPTS
    datasets.Dataset.from_list([{"prompt": p} for p in PROMPTS]).save_to_disk(tmp_path / "saved")
    assert prompts_of(tmp_path / "saved") == PROMPTS
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no .parquet"):
        prompts_of(tmp_path / "none")


# What can't be read


def test_bad_rows_are_named_and_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        lines({"prompt": "ä"}) + b'{"prompt": \n\n[1]\n' + b"[" * 100_000 + b"\n" + b'{"prompt": "\xe4"}\n'
        b'{"n": ' + b"1" * 5000 + b"}\n" + lines({"prompt": "good"})
    )  # fmt: skip
    bad: list[str] = []
    assert [r.number for r in read_records([tmp_path / "a.jsonl"], bad.append)] == [1, 7]
    assert [message.split(": ", 1)[0].rpartition(" ")[2] for message in bad] == ["2", "4", "5", "6", "7"]
    assert "not JSON (Expecting value)" in bad[0] and "not UTF-8" in bad[3]
    with pytest.raises(InputError, match="line 2: not JSON"):
        prompts_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "message", "others"),
    [
        ("id,prompt\n1,one, two\n2,three\n", "line 2: 3 cells under 2 column names", ["three"]),
        ('id,prompt\n1,one\n2,"never\n3,closed\n', "line 3: a quotation mark opens", ["one"]),
        ('id,prompt\n1,a 5" screen\n2,\n', None, ['a 5" screen', None]),
    ],
)
def test_bad_rows_of_a_table(tmp_path, text, message, others):
    (tmp_path / "a.csv").write_text(text)
    bad: list[str] = []
    assert [prompt_in(record.fields) for record in read_records([tmp_path / "a.csv"], bad.append)] == others
    assert [message in line for line in bad] == ([True] if message else [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"prompt\n", "is empty"),
        ("a.txt", b" \n\n".replace(b" ", b""), "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b'[{"prompt": "x"}, {"prom', "not JSON"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 1000, mtime=0)[:-20], "is not a whole gzip file"),
        ("a.jsonl.gz", b'{"prompt": "x"}\n', "is not a whole gzip file"),
        ("a.parquet", b"PAR1", "is not a whole .parquet file"),
        ("a.xlsx", b"PK\x03\x04 no workbook", "not a workbook"),
        ("a.docx", b"PK\x03\x04", "don't know how to read '.docx' files"),
        ("a.txt", b"text\0\1\2" * 9, "is not text"),
        ("a.csv", "prompt\nx\n".encode("utf-16")[:-1], "is not whole text"),
    ],
)
def test_a_file_that_is_not_whole_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(read_records([tmp_path / name], lambda message: None))
    assert "\n" not in str(error.value)


def test_missing_and_unreadable_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_records([tmp_path / "none.jsonl"]))
    os.symlink("a.jsonl", tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="no such file|cannot read"):
        list(read_records([tmp_path / "a.jsonl"]))


@pytest.mark.slow
def test_a_bomb_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'"' + b"x" * (MAX_LINE_CHARACTERS + 1)))
    with pytest.raises(InputError, match="line 1 has more than"):
        list(read_records([tmp_path / "a.jsonl.gz"]))


def repeated_text() -> bytes:
    """A small file that holds one long text many times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 24_000_000]))
    pq.write_table(pa.table({"prompt": texts}), file, compression="zstd")
    return file.getvalue()


BOMBS = {
    "a.xlsx": lambda: workbook('<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>x</t></is></c></row>'),
    "a.parquet": repeated_text,
}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no limit of a process's memory")
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_wants_all_memory_is_refused_and_ends_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(prompt_files, "MAX_READER_MEMORY", 2**31)
    (tmp_path / name).write_bytes(BOMBS[name]())
    assert (tmp_path / name).stat().st_size < 10_000
    with pytest.raises(InputError, match=f"{name} does not fit into memory") as error:
        list(read_records([tmp_path / name]))
    assert "\n" not in str(error.value)


def test_who_stops_reading_a_workbook_leaves_no_process_behind(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append(popen(*args, **more)) or started[-1])
    (tmp_path / "a.xlsx").write_bytes(workbook())
    records = read_records([tmp_path / "a.xlsx"])
    next(records)
    records.close()
    assert started[0].returncode is not None


# The prompt of a row


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"id": 1, "prompt": "x", "text": "y"}, "prompt"),
        ({"ID": 1, "User prompt": "x"}, "User prompt"),
        ({"prompt": "x", "messages": OPENAI}, "messages"),
        ({"prompt": "x", "messages": None}, "prompt"),
        ({"messages": None}, "messages"),
        ({"frage": "x"}, "frage"),
        ({"a": "x", "b": "y"}, None),
        ({}, None),
    ],
)
def test_the_column_that_is_plainly_the_prompt(fields, column):
    assert prompt_column(fields) == column


SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "So."},
]
CLAUDE = [{"sender": "human", "text": "Why?"}, {"sender": "assistant", "text": "So."}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {}}]}]


def node(parent, role, *parts, hidden=False):
    message = {"author": {"role": role}, "content": {"content_type": "text", "parts": list(parts)}}
    if hidden:
        message["metadata"] = {"is_visually_hidden_from_conversation": True}
    return {"parent": parent, "children": [], "message": message if role else None}


TREE = {
    "title": "t",
    "current_node": "d",
    "mapping": {
        "a": node(None, None),
        "h": node("a", "user", "my settings", hidden=True),
        "b": node("h", "user", "Why?"),
        "x": node("a", "user", "An edit that was left"),
        "c": node("b", "assistant", "So."),
        "d": node("c", "tool", {"asset": 1}, "out"),
    },
}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": OPENAI},
        {"id": 1, "conversation": OPENAI},
        {"messages": json.dumps(OPENAI)},
        {"messages": str(OPENAI)},
        {"messages": "[{'role': 'user', 'content': 'Why?'}\n {'role': 'assistant', 'content': 'So.'}]"},
        {"prompt": OPENAI},
        {"prompt": json.dumps({"messages": OPENAI})},
        {"conversations": SHAREGPT},
        {"id": 2, "conversations": json.dumps(SHAREGPT)},
        {"uuid": "u", "name": "n", "chat_messages": CLAUDE},
        {"messages": PARTS},
        {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": OPENAI}},
        {"custom_id": "r", "body": json.dumps({"model": "m", "messages": OPENAI})},
        {"custom_id": "r", "body": {"model": "m", "input": [{"type": "reasoning", "id": 1}, *OPENAI]}},
        {"custom_id": "r", "params": {"model": "m", "max_tokens": 9, "messages": OPENAI}},
        {"role": "user", "content": "Why?"},
        TREE,
        {key: value for key, value in TREE.items() if key != "current_node"},
    ],
)
def test_conversations_of_every_form_have_the_same_user_turns(fields):
    messages = prompt_in(fields)
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Why?"]
    assert first_user_turn(messages) == "Why?" and all(isinstance(message["content"], str) for message in messages)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "  "}, None),
        ({"prompt": None}, None),
        ({"prompt": []}, None),
        ({"messages": OPENAI[:1]}, None),
        ({"messages": [{"role": "user", "content": None}]}, None),
        ({"custom_id": "r", "body": {"model": "m", "input": "Why?"}}, "Why?"),
        ({"prompt": '[{"city": "Rome"}]'}, '[{"city": "Rome"}]'),
        ({"prompt": '{"task": "sort this"}'}, '{"task": "sort this"}'),
        ({"prompt": "[{'half"}, "[{'half"),
        ({"prompt": '[{"from": "Rome", "to": "Oslo"}]'}, '[{"from": "Rome", "to": "Oslo"}]'),
    ],
)
def test_blank_prompts_and_texts_that_only_look_like_json(fields, prompt):
    assert prompt_in(fields) == prompt


@pytest.mark.parametrize("turns", [["Sort 5 and 2.", "And 9?"], '["Sort 5 and 2.", "And 9?"]'])
def test_a_list_of_texts_is_the_users_turns_as_arena_data_has_them(turns):
    assert prompt_in({"prompt": turns}) == [{"role": "user", "content": turn} for turn in ("Sort 5 and 2.", "And 9?")]
    for text in ('["unclosed', "[1, 2]", '["a", null]'):
        assert prompt_in({"prompt": text}) == text, "a text that only looks like one"


@pytest.mark.parametrize(
    ("fields", "column", "message"),
    [
        ({"a": "x", "b": "y"}, None, "no prompt among the columns a, b; name it with --prompt_column"),
        ({"a": "x"}, "b", "no column 'b', but a"),
        ({"prompt": 5}, None, "prompt is neither a text nor a list of messages: 5"),
        ({"messages": ["hi"]}, None, "a conversation is a list of messages, each with a role and a content"),
        ({"body": {"model": "m", "n": 1}}, None, "no prompt among the columns model, n"),
    ],
)
def test_a_row_without_a_prompt_is_named(fields, column, message):
    with pytest.raises(InputError, match=message):
        prompt_in(fields, column)


def test_a_named_column_wins():
    assert prompt_in({"prompt": "no", "asked": "yes"}, "asked") == "yes"


def test_lone_surrogates_are_replaced_in_a_first_turn():
    assert first_user_turn("a\ud800b") == "a?b" and first_user_turn(None) == ""


def test_a_fault_of_a_library_is_not_told_as_a_lack_of_memory(tmp_path, monkeypatch, capsys):
    def break_down(path, say):
        raise TypeError("no such form")
        yield

    monkeypatch.setitem(prompt_files.BOUNDED_READERS, ".xlsx", break_down)
    monkeypatch.setitem(sys.modules, "resource", None)  # this process keeps its memory
    prompt_files.print_rows(tmp_path / "a.xlsx", prompt_files.MAX_READER_MEMORY)
    assert json.loads(capsys.readouterr().out) == ["fault", f"cannot read {tmp_path / 'a.xlsx'}: no such form"]
