"""Contract 1: the row of JSONL, how files of rows are written, and what all programs share."""

import errno
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT

import router_data
from router_data import (
    EVEN_GAIN,
    INFERIOR,
    SUPERIOR,
    InputError,
    LabelledPrompt,
    Outcome,
    RouterAnswer,
    RowAppender,
    add_price_flags,
    batches_with_progress,
    dedup_key,
    encode_row,
    expand_paths,
    label_of,
    near_duplicate_groups,
    normalise_prompt,
    prices_from,
    printable,
    probability_from_gain,
    program_parser,
    read_rows,
    row_type_of,
    run_script,
    short_sha256,
    write_json,
    write_rows,
    write_text_atomically,
)

TRICKY = [
    "ROUTE_TO_INFERIOR",
    "ROUTE_TO_SUPERIOR",
    'say "ROUTE_TO_INFERIOR"',
    'it ends in "ROUTE_TO_SUPERIOR',
    "\\ROUTE_TO_INFERIOR",
    "two\nlines",
    "next line \x85 and paragraph \u2029",
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


def test_a_routers_answer_is_no_label_to_grep(tmp_path):
    answers = RouterAnswer(router_score=0.9, router_label=SUPERIOR, threshold=0.5).model_dump()
    write_rows(tmp_path / "scored.jsonl", [row("x", INFERIOR) | answers])
    (line,) = (tmp_path / "scored.jsonl").read_text().splitlines()
    assert json.loads(line)["router_label"] == SUPERIOR
    assert f'"{INFERIOR}"' in line and f'"{SUPERIOR}"' not in line


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
        (b"[1]", "not a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(encode_row(row("fine")) + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=f"rows.jsonl, line 3: .*{says}") as error:
        list(read_rows(path))
    assert "\n" not in str(error.value)


def test_a_line_nested_without_end_is_named_and_no_traceback(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(InputError, match="rows.jsonl, line 1: not JSON"):
        list(read_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(InputError, match="cannot read .*none.jsonl: No such file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_the_soft_label_is_the_labellers_or_else_the_label():
    assert LabelledPrompt(**row("x", SUPERIOR, superior_probability=0.7)).soft_label == 0.7
    assert LabelledPrompt(**row("x", SUPERIOR)).soft_label == 1.0
    assert LabelledPrompt(**row("x", INFERIOR)).soft_label == 0.0


def test_a_gain_becomes_a_probability_in_the_same_order():
    gains = np.linspace(-1, 1, 41)
    probabilities = [probability_from_gain(gain) for gain in gains]
    assert probabilities == sorted(probabilities) and 0 <= probabilities[0] <= probabilities[-1] < 1
    assert probability_from_gain(-0.3) == 0 and probability_from_gain(EVEN_GAIN) == 0.5
    above, below = probability_from_gain(EVEN_GAIN), probability_from_gain(EVEN_GAIN - 0.01)
    assert label_of(above) == SUPERIOR and label_of(below) == INFERIOR


def test_rows_of_both_kinds_are_told_apart(tmp_path):
    write_rows(tmp_path / "labelled.jsonl", [row("x")])
    write_rows(tmp_path / "outcomes.jsonl", [{"prompt": "x", "weak_score": 0.1, "strong_score": 1}])
    assert row_type_of(tmp_path / "labelled.jsonl") is LabelledPrompt
    assert row_type_of(tmp_path / "outcomes.jsonl") is Outcome


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
    assert near_duplicate_groups([first, other, copy, "hi", "hi "]) == [0, 1, 0, 3, 3]
    assert normalise_prompt("  Hi \n there ") == "hi there"


def test_keys_fold_case_and_white_space_only():
    assert dedup_key(" HI  there") == dedup_key("hi there") != dedup_key("hi there!")
    assert len(dedup_key("\ud800")) == 12
    assert short_sha256("") == "e3b0c44298fc"


# Writing (tests/test_row_appender.py has what an appender cuts and refuses)


def test_two_appenders_share_a_file(tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    first, second = RowAppender(path, ("label",)), RowAppender(path, ("label",))
    for i in range(20):
        (first, second)[i % 2].append(row(f"prompt {i}"))
    first.close()
    second.close()
    assert [each.prompt for each in read_rows(path)] == [f"prompt {i}" for i in range(20)]


def test_on_a_full_disk_a_row_is_written_whole_or_not_at_all(tmp_path):
    code = (
        f"import sys, resource, signal; sys.path.insert(0, {str(ROOT)!r})\n"
        "import router_data\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"appender = router_data.RowAppender({str(tmp_path / 'rows.jsonl')!r})\n"
        "try:\n"
        "    for i in range(99): appender.append({'prompt': 'x' * 90, 'label': router_data.INFERIOR})\n"
        "except router_data.InputError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "File too large; free some space, then resume" in said
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 7


def test_what_is_written_whole_replaces_what_was_there(tmp_path):
    write_text_atomically(tmp_path / "a.txt", "ü\n")
    write_json(tmp_path / "a.json", {"ü": np.float32(0.5)})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ü\n"
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 0.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt"]


# What programs share


def prices(*flags: str):
    parser = program_parser("A program.")
    add_price_flags(parser)
    return prices_from(parser.parse_args(flags))


def test_prices_are_dollars_per_million_tokens():
    assert prices() is None
    given = prices("--price_superior", "10", "--price_inferior", "0.5", "--tokens_per_prompt", "1000")
    assert given.per_thousand(0) == pytest.approx(0.5)
    assert given.per_thousand(1) == pytest.approx(10)
    assert given.per_thousand(np.array([0.5])) == pytest.approx([5.25])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--price_superior", "10"], "go together"),
        (["--price_superior", "10", "--price_inferior", "-1"], "negative"),
        (["--price_superior", "10", "--price_inferior", "1", "--tokens_per_prompt", "0"], "positive"),
    ],
)
def test_half_a_price_is_refused(flags, says):
    with pytest.raises(InputError, match=says):
        prices(*flags)


def test_help_is_the_programs_docstring(capsys):
    with pytest.raises(SystemExit):
        program_parser("Do it.\n\nExample:\n    python3 do_it.py").parse_args(["--help"])
    assert "Do it.\n\nExample:\n    python3 do_it.py\n" in capsys.readouterr().out


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(router_data, "SECONDS_BETWEEN_LINES", -1)
    assert [list(batch) for batch in batches_with_progress(range(5), 2, "counting")] == [[0, 1], [2, 3], [4]]
    assert capsys.readouterr().err == "counting: 2 of 5\ncounting: 4 of 5\ncounting: 5 of 5\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a program's main in a project folder of its own; gives the exit status, stdout and stderr."""
    monkeypatch.setattr(router_data, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o022)

    def run_main(main) -> tuple[int, str, str]:
        with warnings.catch_warnings(action="always"), pytest.raises(SystemExit) as ended:
            run_script(main)
        return ended.value.code, *capsys.readouterr()

    yield run_main
    os.umask(umask)


def raises(error: BaseException):
    def main():
        raise error

    return main


def test_an_error_is_one_line_and_status_1(run):
    error = InputError("no such file: \x1b]0;owned\x07")
    assert run(raises(error)) == (1, "", "error: no such file: \\x1b]0;owned\\x07\n")


def test_a_warning_is_one_line(run):
    assert run(lambda: warnings.warn("careful \x9b2J", stacklevel=1)) == (0, "", "warning: careful \\x9b2J\n")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed"),
    ],
)
def test_a_full_disk_is_one_line_whichever_library_met_it(run, error):
    def main():
        try:
            raise error
        except Exception as first:
            raise RuntimeError("could not be saved") from first

    assert (
        run(raises(error))
        == run(main)
        == (1, "", "error: the disk is full; free some space, then resume or run it again\n")
    )


def test_any_other_error_keeps_its_traceback(run):
    with pytest.raises(KeyError):
        run_script(raises(KeyError("x")))


def test_the_status_is_what_main_returns(run, tmp_path):
    assert run(lambda: 3)[0] == 3
    assert run(lambda: tmp_path)[0] == 0
    assert run(raises(KeyboardInterrupt())) == (130, "", "\nstopped\n")


def test_the_settings_are_those_of_the_projects_own_env_and_the_environment_wins(run, tmp_path, monkeypatch):
    for name in ("A_OF_ENV", "B_OF_ENV"):
        monkeypatch.setenv(name, "shell")  # so that monkeypatch takes away what the program sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("B_OF_ENV", "shell")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".env").write_text("A_OF_ENV=theirs\n")
    monkeypatch.chdir(tmp_path / "data")
    assert run(lambda: print(os.environ.get("A_OF_ENV")))[1] == "None\n"
    (tmp_path / ".env").write_text("\ufeffA_OF_ENV=file\nB_OF_ENV=file\n", encoding="utf-8")
    assert run(lambda: print(os.environ["A_OF_ENV"], os.environ["B_OF_ENV"]))[1] == "file shell\n"


def test_an_env_that_others_can_read_is_warned_of(run, tmp_path, monkeypatch):
    monkeypatch.setenv("A_NAME", "shell")  # so that nothing is set
    (tmp_path / ".env").write_text("A_NAME=value\n")
    assert f"can read the keys in {tmp_path / '.env'}: chmod 600" in run(lambda: None)[2]
    (tmp_path / ".env").chmod(0o600)
    assert run(lambda: None) == (0, "", "")


def test_an_env_of_another_encoding_is_named(run, tmp_path):
    (tmp_path / ".env").write_text("KEY=value\n", encoding="utf-16")
    status, _, said = run(lambda: None)
    assert status == 1 and f"{tmp_path / '.env'} is not UTF-8" in said and said.count("\n") == 1


def test_files_are_for_their_owner_only(run, tmp_path):
    def main():
        write_rows("a.jsonl", [])
        write_text_atomically("b.txt", "")
        os.mkdir("c")

    assert run(main)[0] == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a.jsonl": 0o600, "b.txt": 0o600, "c": 0o700}


def test_a_closed_pipe_ends_a_program_quietly(tmp_path):
    code = "for i in range(100000): print(i)"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} - <<'END' | head -n 1\n"
         f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport router_data\n"
         f"def main():\n    {code}\nrouter_data.run_script(main)\nEND"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "0\n" and done.stderr == ""


def test_printable_keeps_text_and_shows_controls():
    assert printable("tab\tüber 日本 🦊\n") == "tab\tüber 日本 🦊\n"
    assert printable("\x1b[2J\x07\u202e") == "\\x1b[2J\\x07\\x202e"


def test_importing_the_contract_is_cheap():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import router_data, prompt_files\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'gradio', 'pandas', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
