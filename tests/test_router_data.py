"""Contract 1: the row of JSONL."""

import json
import subprocess

import pytest

from router_data import (
    INFERIOR,
    SUPERIOR,
    InputError,
    LabelledPrompt,
    Outcome,
    encode_row,
    expand_paths,
    near_duplicate_groups,
    normalise_prompt,
    read_rows,
    write_rows,
)

TRICKY = [
    "ROUTE_TO_INFERIOR",
    "ROUTE_TO_SUPERIOR",
    'say "ROUTE_TO_INFERIOR"',
    'it ends in "ROUTE_TO_SUPERIOR',
    "\\ROUTE_TO_INFERIOR",
    "two\nlines",
    "line separator \u2028 and emoji 🦊",
    "lone surrogate \ud83d",
    "\x00\x1f",
]


def row(prompt: str, label: str = INFERIOR, **more) -> dict:
    return {"prompt": prompt, "label": label, **more}


def test_grep_keeps_exactly_the_rows_so_labelled(tmp_path):
    rows = [row(prompt, label) for label in (INFERIOR, SUPERIOR) for prompt in TRICKY]
    rows += [row("x", SUPERIOR, votes={INFERIOR: 1, SUPERIOR: 2}, raw=INFERIOR), row("y", INFERIOR, note=SUPERIOR)]
    write_rows(tmp_path / "all.jsonl", rows)
    for label in (INFERIOR, SUPERIOR):
        found = subprocess.run(["grep", f'"{label}"', tmp_path / "all.jsonl"], capture_output=True, check=True).stdout
        assert [json.loads(line)["prompt"] for line in found.splitlines()] == [
            each["prompt"] for each in rows if each["label"] == label
        ]


def test_rows_come_back_as_they_were_written(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row(prompt, SUPERIOR, anything=[1, {"a": None}]) for prompt in TRICKY])
    back = list(read_rows(tmp_path / "rows.jsonl"))
    assert [each.prompt for each in back] == TRICKY
    assert back[0].anything == [1, {"a": None}]
    assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    assert encode_row(back[0]).count(b"\n") == 1


def test_cat_of_files_is_a_file(tmp_path):
    write_rows(tmp_path / "a.jsonl", [row("one")])
    write_rows(tmp_path / "b.jsonl", [row("two", SUPERIOR)])
    merged = tmp_path / "all.jsonl"
    merged.write_bytes((tmp_path / "a.jsonl").read_bytes() + (tmp_path / "b.jsonl").read_bytes())
    assert [each.prompt for each in read_rows(merged)] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "x", "label": "ROUTE_TO_NOWHERE"}', "label"),
        (b'{"prompt": " ", "label": "ROUTE_TO_INFERIOR"}', "prompt: is blank"),
        (b'{"label": "ROUTE_TO_INFERIOR"}', "prompt"),
        (b'{"prompt": "x", "label": "ROUTE_TO_INFERIOR", "superior_probability": 0.5}', "contradicts"),
        (b'{"prompt": "x", "label": "ROUTE_TO_SUPERIOR", "superior_probability": 1.5}', "superior_probability"),
        (b'{"prompt": "x", "label": "ROUTE_TO_SUP', "not JSON"),
        (b'\xff{"prompt": "x"}', "not UTF-8"),
        (b"[1]", "row"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(encode_row(row("fine")) + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=f"rows.jsonl, line 3: .*{says}") as error:
        list(read_rows(path))
    assert "\n" not in str(error.value)


def test_target_is_the_grade_or_else_the_label():
    assert LabelledPrompt(**row("x", SUPERIOR, superior_probability=0.7)).target == 0.7
    assert LabelledPrompt(**row("x", SUPERIOR)).target == 1.0
    assert LabelledPrompt(**row("x", INFERIOR)).target == 0.0


def test_an_outcome_needs_finite_scores(tmp_path):
    (tmp_path / "o.jsonl").write_text('{"prompt": "x", "weak_score": NaN, "strong_score": 1}\n')
    with pytest.raises(InputError, match="line 1: weak_score"):
        list(read_rows(tmp_path / "o.jsonl", Outcome))


def test_globs_are_expanded_once_and_a_missing_file_is_named(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).touch()
    paths = expand_paths([tmp_path / "b.jsonl", tmp_path / "*.jsonl"])
    assert [path.name for path in paths] == ["b.jsonl", "a.jsonl"]
    with pytest.raises(InputError, match="no such file: .*c.jsonl"):
        expand_paths([tmp_path / "c.jsonl"])
    with pytest.raises(InputError, match="is a folder"):
        expand_paths([tmp_path])


def test_near_duplicates_share_a_group():
    first = "Please explain to me how a heat pump works in winter, and what it costs to run one in an old house."
    copy = first.upper().replace("  ", " ") + "!"
    other = "Write a limerick about a heat pump that would not start on the coldest day of the year."
    assert near_duplicate_groups([first, other, copy, "hi", "hi "]) == [0, 1, 0, 2, 2]
    assert normalise_prompt("  Hi \n there ") == "hi there"
