"""The one appender of rows: what a kill leaves is cut off, what is not ours is never touched."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from router_data import InputError, RowAppender, retry_after

OWN = ("router_score", "time")
WHOLE = b'{"time": "t", "router_score": 0.5}\n'


def append(path, row, own_fields=OWN):
    appender = RowAppender(path, own_fields)
    appender.append(row)
    appender.close()


def test_a_line_that_a_kill_left_is_cut_behind_whole_rows_of_the_same_kind(tmp_path):
    log = tmp_path / "new" / "log.jsonl"
    append(log, {"time": "t", "router_score": 0.5})
    assert log.read_bytes() == WHOLE and log.stat().st_mode & 0o777 == 0o600
    for torn in (b'{"time": "t', b'{"time": "' + b"x" * 200_000):
        log.write_bytes(WHOLE * 3 + torn)
        append(log, {"time": "t", "router_score": 0.5})
        assert log.read_bytes() == WHOLE * 4


@pytest.mark.parametrize(
    "foreign",
    [b"sk-a-key-without-a-newline", b'{"one": "object"}', b"OPENAI_API_KEY=sk-1\nHF_TOKEN=hf", b'{"prompt": "hi"}\n',
     b'{"prompt": "hi"}\n{"prompt": "torn', b"\x00\xff\n", WHOLE + b'{"prompt": "an input file"}\n'],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_and_stays_as_it_is(tmp_path, foreign):
    path = tmp_path / "file"
    path.write_bytes(foreign)
    with pytest.raises(InputError, match="holds something else"):
        RowAppender(path, OWN)
    assert path.read_bytes() == foreign


def test_without_fields_of_its_own_any_whole_row_will_do_before_a_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "hi"}\n{"prompt": "torn')
    append(path, {"prompt": "there"}, ())
    assert path.read_bytes() == b'{"prompt": "hi"}\n{"prompt": "there"}\n'
    path.write_bytes(b"a key\nwithout a newline")
    with pytest.raises(InputError):
        RowAppender(path)
    assert path.read_bytes() == b"a key\nwithout a newline"


def test_links_and_what_is_no_file_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(WHOLE)
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("link", "a symbolic link"), ("fifo", "not a regular file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=f"cannot write .*{why}"):
            RowAppender(tmp_path / name)
    assert secret.read_bytes() == WHOLE


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_a_file_that_others_can_read_is_warned_of_and_goes_on(tmp_path):
    path = tmp_path / "log.jsonl"
    append(path, {"time": "t", "router_score": 0.5})
    path.chmod(0o666)
    with pytest.warns(UserWarning, match=f"can read {path}: chmod 600 {path}"):
        append(path, {"time": "t", "router_score": 0.5})
    assert path.read_bytes() == WHOLE * 2 and path.stat().st_mode & 0o777 == 0o666


def test_retry_after_is_read_in_all_its_forms():
    in_a_minute = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    for headers, seconds in (
        ({"retry-after": "3"}, 3), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "0.5"}, 0.5), ({}, None),
        ({"retry-after": "soon"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "-1"}, None),
        ({"retry-after-ms": "1", "retry-after": "60"}, 0.001), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ):  # fmt: skip
        assert retry_after(headers) == seconds
    assert 57 <= retry_after({"retry-after": in_a_minute}) <= 60
