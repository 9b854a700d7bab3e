"""A file on the page: every kind is scored and comes back; what can't be read is named; work can be stopped."""

import csv
import gzip
import html
import json
import threading

import pytest

from inference.page.files import BATCH, ORDERS, ColumnNeeded, FileTab, ScoredFile, as_cell
from router_data import INFERIOR, SUPERIOR, InputError, Prices, RouterAnswer

PRICES = Prices(inferior=0.5, superior=10, tokens_per_prompt=800)
EASY_PROMPT = "please open the door with apple and bread"
HARD_PROMPT = "please open the zorp with apple and bread"
CHAT = [{"from": "human", "value": HARD_PROMPT}, {"from": "gpt", "value": "bread"}]


@pytest.fixture(scope="module")
def tab(page):
    return FileTab(page)


def score(tab, path, column=None) -> ScoredFile:
    *said, scored = tab.score(path, column)
    assert said and all(isinstance(line, str) for line in said)
    return scored


FILES = {
    "a.jsonl": (json.dumps({"prompt": HARD_PROMPT, "id": 7}) + '\n\n{"prompt": " "}\n').encode()
    + json.dumps({"prompt": EASY_PROMPT}).encode(),
    "a.jsonl.gz": gzip.compress(f'"{HARD_PROMPT}"\n"{EASY_PROMPT}"\n'.encode()),
    "a.csv": f'id;Prompt\n7;"{HARD_PROMPT}"\n8; \n9;"{EASY_PROMPT}"\n'.encode("utf-16"),
    "a.txt": f"{HARD_PROMPT}\n\n{EASY_PROMPT}\n".encode(),
    "a.json": json.dumps([{"conversations": CHAT}, {"prompt": EASY_PROMPT}]).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_each_kind_are_scored_and_written_back(tab, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    hard, easy = tab.page.router.score([HARD_PROMPT, EASY_PROMPT])
    assert hard > 0.7 and easy < 0.3
    scored = score(tab, tmp_path / name)
    assert list(scored.scores) == pytest.approx([hard, easy])
    summary = html.unescape(tab.summary(scored, 0.5, PRICES))
    assert "50%" in summary and "$0.0084" in summary and "48% less than $0.016" in summary
    assert ("1 without a prompt, left out" in summary) == (len(scored.decisions) == 3)

    written = tab.write(scored, 0.5)
    is_table = name == "a.csv"
    assert written.name == ("a-scored.csv" if is_table else "a-scored.jsonl")
    with open(written, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file) if is_table else map(json.loads, file))
    assert [row["router_label"] or None for row in rows if row["router_score"]] == [SUPERIOR, INFERIOR]
    if not is_table:
        assert all(RouterAnswer.model_validate(row).threshold == 0.5 for row in rows)
    assert tab.write(scored, 1.0).parent != written.parent


def test_the_rows_come_in_the_order_that_was_chosen(tab, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([EASY_PROMPT, HARD_PROMPT, "what is an egg"]))
    scored = score(tab, tmp_path / "a.txt")
    hard = tab.page.router.score([HARD_PROMPT])[0]
    nearest, *others = ORDERS
    table = tab.table(scored, float(hard), nearest)
    assert table["Prompt"][0] == HARD_PROMPT and table["Row"][0] == 2 and table["Route"][0] == "superior"
    assert tab.table(scored, 0.0, nearest)["Route"].tolist() == ["superior"] * 3
    orders = {order: tab.table(scored, 0.5, order)["Superior, %"].tolist() for order in others}
    assert orders["highest first"] == orders["lowest first"][::-1] == sorted(orders["as in the file"], reverse=True)
    assert tab.table(scored, 0.5, "as in the file")["Row"].tolist() == [1, 2, 3]
    assert tab.histogram(scored, 0.5)["prompts"].sum() == 3
    curve = tab.curve(scored, PRICES)
    assert (curve["share"].iloc[0], curve["cost"].iloc[0]) == (100, "$0.024")
    assert curve["share"].is_monotonic_decreasing


def test_a_prompt_that_comes_again_is_scored_once(tab, tmp_path, monkeypatch):
    rows = [{"prompt": HARD_PROMPT}, {"messages": [{"role": "user", "content": EASY_PROMPT}]}, {"prompt": EASY_PROMPT}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * BATCH))
    scored, model = [], tab.page.router.model
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda rows: (scored.extend(rows), logits(rows))[1])
    scores = score(tab, tmp_path / "a.jsonl").scores
    assert len(scored) <= len(rows) * 2  # of each once, and once more where a batch ends between two of them
    monkeypatch.undo()
    expected = tab.page.router.score([HARD_PROMPT, EASY_PROMPT, EASY_PROMPT])
    assert scores.tolist() == expected.tolist() * BATCH


def test_bad_rows_are_named_and_passed_over(tab, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "{EASY_PROMPT}"}}\n{{"prompt": 5}}\n{{"pro\n')
    summary = html.unescape(tab.summary(score(tab, tmp_path / "a.jsonl"), 0.5, PRICES))
    assert "row 2: prompt is neither a text" in summary and "line 3: not JSON" in summary


def test_the_column_is_asked_for_where_none_is_plainly_the_prompt(tab, tmp_path):
    (tmp_path / "a.csv").write_text(f"id,frage\n1,{HARD_PROMPT}\n")
    with pytest.raises(ColumnNeeded) as needed:
        score(tab, tmp_path / "a.csv")
    assert needed.value.columns == ["id", "frage"]
    scored = score(tab, tmp_path / "a.csv", "frage")
    assert scored.column == "frage" and len(scored.scores) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"prompt": \n', "holds no row that can be read"),
        ("a.jsonl", b"[" * 50_000, "not JSON|not whole"),
        ("a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", "holds no row that can be read"),
        ("a.txt", b"\xff\xfe\x00", "is not whole text"),
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.jsonl.gz", b"none", "not a whole gzip file"),
        ("a.exe", b"MZ", "don't know how to read"),
    ],
)
def test_a_bad_file_is_answered_in_one_line(tab, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        score(tab, tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_waits_for_the_one_before_and_says_so(tab, tmp_path):
    (tmp_path / "a.txt").write_text(EASY_PROMPT)
    first = tab.score(tmp_path / "a.txt", None)
    next(first)
    second = tab.score(tmp_path / "a.txt", None)
    assert "another visitor's file is being scored" in next(second)
    threading.Timer(0.1, lambda: None).start()
    first.close()  # the first visitor stops, or goes
    assert isinstance(list(second)[-1], ScoredFile)
    assert isinstance(list(tab.score(tmp_path / "a.txt", None))[-1], ScoredFile)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("＝1+1", "'＝1+1"),
        ("\n=1", "'\n=1"),
        ("-3.5", "-3.5"),
        ("+1", "+1"),
        (5, 5),
        ("", ""),
    ],
)
def test_no_cell_becomes_a_formula(value, cell):
    assert as_cell(value) == cell


def test_no_name_of_a_column_becomes_a_formula(tab, tmp_path):
    (tmp_path / "a.csv").write_text(f"=1+1,prompt\n=2+2,{EASY_PROMPT}\n")
    written = tab.write(score(tab, tmp_path / "a.csv"), 0.5).read_text("utf-8-sig")
    assert [line.split(",")[:2] for line in written.splitlines()] == [["'=1+1", "prompt"], ["'=2+2", EASY_PROMPT]]
