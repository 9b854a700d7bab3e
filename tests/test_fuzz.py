"""Fuzzing, short and the same in every run: what strangers send is read, or refused in one line; nothing else."""

import gzip
import io
import json
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save_checkpoint
from fuzzing import MESSAGE, SCALARS, VALUES, WORDS, as_json, fuzz, with_damage
from hypothesis import example, given
from hypothesis import strategies as st

import prompt_files
from inference.endpoint.apis import APIS, ApiError
from inference.endpoint.body_parser import parse
from prompt_files import BOUNDED_READERS, READERS, first_user_turn, prompt_in, read_records
from router_data import InputError
from router_model import (
    RUN_FILE,
    SETTINGS_FILE,
    TRADEOFF_FILE,
    VERDICT_FILE,
    RouterSettings,
    TradeoffTable,
    Verdict,
    is_rehearsal,
    load_tokenizer,
)

pytestmark = pytest.mark.slow


# --- the endpoint's request parser -----------------------------------------------------------------------------------

BODY = st.fixed_dictionaries(
    {"model": st.sampled_from(["router", "router-0.3", 'ä\U0001f600"\\']) | VALUES},
    optional={
        "messages": st.lists(MESSAGE, max_size=4) | VALUES,
        "input": st.lists(MESSAGE, max_size=4) | VALUES,
        "tools": VALUES,
        "stream": SCALARS,
        "conversation": VALUES,
        "previous_response_id": SCALARS,
    },
)


@fuzz(400)
@given(with_damage(BODY.map(as_json)), st.sampled_from(list(APIS.values())), st.booleans())
@example(b'{"model":"m","messages":' + b"[" * 100_000, APIS["/chat/completions"], True)
@example(b'{"model":"m","x":' + b"9" * 5000 + b"}", APIS["/chat/completions"], True)
@example(b'\xef\xbb\xbf{"\\u006dodel":"\\ud800"}', APIS["/messages"], True)
def test_a_request_is_parsed_as_json_reads_it_or_refused_with_400(raw, api, measure):
    try:
        request = parse(raw, api, max_length=64, measure=measure)
    except ApiError as error:
        assert error.status == 400 and "\n" not in error.message
        return
    assert json.loads(raw.decode("utf-8-sig", "surrogatepass"))["model"] == request.model
    assert json.loads(raw[request.model_start : request.model_end].decode("utf-8", "surrogatepass")) == request.model
    assert request.turns is None or (request.turns and all(isinstance(turn, str) for turn in request.turns))


# --- the reader of prompt files --------------------------------------------------------------------------------------

ROW = st.dictionaries(WORDS, VALUES, min_size=1, max_size=3)


@cache
def packed(suffix: str) -> bytes:
    """A whole file of a kind that is not text."""
    table, file = pa.table({"prompt": ["why?", None, "how?"], "n": [1, 2, 3]}), io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(table, file)
    elif suffix == ".arrow":
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return file.getvalue()


def lines_of(rows: list) -> bytes:
    """JSONL."""
    return b"".join(as_json(row) + b"\n" for row in rows)


def table_of(rows: list) -> bytes:
    """Something like a CSV."""
    return "\n".join(",".join([*map(str, row), *map(str, row.values())]) for row in rows).encode("utf-8", "replace")


def file_of(suffix: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """The name of a file of a kind, and its bytes, packed or not."""
    rows = st.lists(ROW, max_size=3)
    whole = {".json": (rows | VALUES).map(as_json), ".csv": rows.map(table_of), ".tsv": rows.map(table_of)}
    if suffix in (".parquet", ".arrow"):
        whole[suffix] = st.just(packed(suffix))
    data = with_damage(whole.get(suffix, rows.map(lines_of)))
    coded = data | data.map(lambda raw: raw.decode("latin-1").encode("utf-16"))
    gz = coded.map(gzip.compress)
    return st.tuples(st.just(f"a{suffix}"), coded) | st.tuples(st.just(f"a{suffix}.gz"), gz | with_damage(gz))


@fuzz(200)
@given(st.sampled_from(sorted(READERS)).flatmap(file_of))
@example(("a.jsonl", b'{"prompt": ' + b"[" * 100_000))
@example(("a.json", b"[" * 100_000))
@example(("a.json", b"9" * 5000))
def test_a_file_of_prompts_is_read_or_refused_in_one_line(file):
    name, data = file
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, name)
        path.write_bytes(data)
        patch.setattr(prompt_files, "READERS", READERS | BOUNDED_READERS)  # here, not in processes of their own
        for bad_row in (None, lambda line: None):
            try:
                rows = [record.fields for record in read_records([path], bad_row)]
            except InputError as error:
                assert "\n" not in str(error) and name in str(error)
                continue
            for fields in rows:
                with suppress(InputError):
                    first_user_turn(prompt_in(fields))


# --- the reader of checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A whole checkpoint without its weights, which other tests damage."""
    folder = save_checkpoint(tmp_path_factory.mktemp("fuzz"), settings={"max_length": 64, "temperature": 1.5})
    table = {"measured_on": "x", "rows": 1, "inferior_quality": 0.5}
    lists = dict.fromkeys(("thresholds", "superior_share", "quality", "quality_low", "quality_high"), [0.5])
    (folder / TRADEOFF_FILE).write_text(json.dumps(table | lists))
    verdict = {"pays": True, "sentences": ["a"], "measured_on": "x", "rows": 1, "threshold": 0.5, "evaluated_at": "x"}
    shares = dict.fromkeys(("superior_share", "quality", "quality_low", "quality_high"), 0.5)
    (folder / VERDICT_FILE).write_text(json.dumps(verdict | shares))
    (folder / RUN_FILE).write_text("{}")
    return folder


def read_checkpoint(folder: Path) -> None:
    """All that is read of a checkpoint before its weights."""
    RouterSettings.load(folder)
    TradeoffTable.load(folder)
    Verdict.load(folder)
    is_rehearsal(folder)
    load_tokenizer(folder)


def with_one_field_of(path: Path) -> st.SearchStrategy[bytes]:
    """A JSON file in which one field has another value."""
    fields = json.loads(path.read_bytes())
    names = st.sampled_from(sorted(fields) or ["x"])
    return st.builds(lambda name, value: as_json({**fields, name: value}), names, VALUES)


NAMES = ("config.json", SETTINGS_FILE, "tokenizer.json", TRADEOFF_FILE, VERDICT_FILE, RUN_FILE)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_read_or_refused_in_one_line(checkpoint, name):
    path = checkpoint / name
    whole = path.read_bytes()

    @fuzz(60)
    @given(with_damage(st.just(whole)) | with_one_field_of(path) | VALUES.map(as_json))
    @example(b"[" * 100_000)
    @example(b"9" * 5000)
    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(action="ignore"):
                read_checkpoint(checkpoint)
        except InputError as error:
            assert "\n" not in str(error) and str(checkpoint) in str(error)

    try:
        read()
    finally:
        path.write_bytes(whole)
