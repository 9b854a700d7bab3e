"""Files of prompts as people have them, and the prompt of a row: one reader for every program.

    for record in read_records(["prompts.csv"]):  # JSONL, JSON, CSV, Excel, parquet, text; any usual encoding; .gz
        prompt = prompt_in(record.fields)         # a text, or the messages of a conversation

The rows of this project's own files are contract 1: see router_data.py.
"""

import ast
import codecs
import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from router_data import InputError, expand_paths

# The usual names of the column that holds a prompt, the likeliest first
CONVERSATION_COLUMNS = ("conversation", "conversations", "messages", "chat_messages", "mapping", "body", "params")
PROMPT_COLUMNS = (
    "prompt", "user_prompt", "question", "instruction", "text", "query", "user_query", "input", "user_input",
    "user_message", "message",
)  # fmt: skip
_ROLE_KEYS = ("role", "from", "sender", "author")
_CONTENT_KEYS = ("content", "value", "text")

MAX_LINE_CHARACTERS = 64_000_000
MAX_ARRAY_CHARACTERS = 512_000_000  # a JSON array is read whole
MAX_PRINTED_CHARACTERS = 1_000_000
MAX_READER_MEMORY = 4 * 2**30  # bytes of address space of the process that reads a workbook or a parquet file
DELIMITERS = {",": "CSV with commas", ";": "CSV with semicolons", "\t": "tab-separated", "|": "CSV with vertical bars"}
ONE_COLUMN = "\x1f"  # the delimiter of a table that has none
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODING_NAMES = {"utf-8": "UTF-8", "cp1252": "Windows-1252", "utf-32": "UTF-32"} | dict.fromkeys(
    ("utf-16", "utf-16-le", "utf-16-be"), "UTF-16"
)
_DELIMITER_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # what Excel puts first in some countries
_UNDECODED = re.compile("[\udc80-\udcff]")
_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and Infinity, which no row can hold, become null


class Record(NamedTuple):
    """A row of any file or data set, before anything is known about it."""

    fields: dict
    source: str
    number: int


Report = Callable[[str], None]
Reader = Callable[[Path, Report], Iterator["dict | InputError"]]


def read_records(
    patterns: Iterable[str | Path], bad_row: Report | None = None, say: Report | None = None
) -> Iterator[Record]:
    """The rows of local files of prompts, one at a time: whatever `READERS` names, .gz too, and folders of them.

    Args:
        patterns: files, globs, or folders as they are downloaded or saved from the hub.
        bad_row: is told of a row that can't be read, with file and line; the row is passed over. Without it such a row
            is an error.
        say: is told how a file is read where that had to be found out: encoding, delimiter, sheet.

    Raises:
        InputError: no such file, an unknown kind of file, a file that is empty or not whole, or a bad row.
    """
    for pattern in patterns:
        for path in _files_in(Path(pattern)) if os.path.isdir(pattern) else expand_paths([pattern]):
            number = 0
            for number, row in enumerate(_rows_of(path, say or _ignore), 1):
                if isinstance(row, dict):
                    yield Record(row, path.name, number)
                elif bad_row:
                    bad_row(str(row))
                else:
                    raise row
            if not number:
                raise InputError(f"{path} is empty: it has no rows")


def is_local(name: str) -> bool:
    """Whether a data set's name means files here rather than a data set of the hub."""
    return os.path.exists(name) or "*" in name or _suffix(Path(name)) in READERS


def _ignore(message: str) -> None:
    pass


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _files_in(folder: Path) -> list[Path]:
    """The files of the first readable kind in a folder and the folders below it, hidden ones left out."""
    visible = [p for p in sorted(folder.rglob("*")) if not any(part[0] == "." for part in p.relative_to(folder).parts)]
    for suffix in (".parquet", ".arrow", ".jsonl", ".ndjson", ".csv", ".tsv"):
        if found := [path for path in visible if _suffix(path) == suffix and path.is_file()]:
            return found
    raise InputError(f"{folder} holds no .parquet, .arrow, .jsonl or .csv file; name a file")


def _rows_of(path: Path, say: Report, readers: "dict[str, Reader] | None" = None) -> Iterator[dict | InputError]:
    """A file's rows; in the place of a row that can't be read, the error that names it."""
    try:
        read = (readers or READERS).get(_suffix(path))
        if read is None:
            raise InputError(f"{path}: don't know how to read '{path.suffix}' files; use one of {', '.join(READERS)}")
        yield from read(path, say)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); download or pack it again") from error
    except UnicodeError as error:  # UTF-16 or UTF-32 that is cut off, or none
        raise InputError(f"{path} is not whole text ({error.__class__.__name__}); save it again as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; split it, or save it as JSONL") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _open_binary(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a text file, each with its "\\n". Only that ends a line: U+2028 and the like are part of a text.

    Bytes that are none of the encoding come as lone surrogates.
    """
    with _open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding, "surrogateescape", newline="\n")
        for number, line in enumerate(iter(lambda: text.readline(MAX_LINE_CHARACTERS), ""), 1):
            if len(line) == MAX_LINE_CHARACTERS:
                raise InputError(f"{path}, line {number} has more than {MAX_LINE_CHARACTERS:,} characters; split it")
            yield line.removeprefix("\ufeff") if number == 1 else line


def _encoding_of(path: Path) -> str:
    """The encoding of a text file: that of its byte order mark, UTF-16 by its zero bytes, UTF-8, or Windows' cp1252.

    A file with some lines that are not UTF-8 still counts as UTF-8 if more lines are.

    Raises:
        InputError: it is no text.
    """
    with _open_binary(path) as file:
        start = file.read(4096)
        for mark, encoding in BYTE_ORDER_MARKS.items():
            if start.startswith(mark):
                return encoding
        for encoding, high_bytes in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
            if high_bytes.count(0) > len(high_bytes) / 3:
                return encoding
        if b"\0" in start:
            raise InputError(f"{path} is not text; use one of {', '.join(READERS)}")
        file.seek(0)
        lines = iter(lambda: file.readline(MAX_LINE_CHARACTERS), b"")
        are_utf8 = [_is_utf8(line) for line in lines if not line.isascii()]
    return "utf-8" if 2 * sum(are_utf8) >= len(are_utf8) else "cp1252"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_json(path: Path, say: Report) -> Iterator[dict | InputError]:
    """One object or text a line; or one JSON array of them; or one object that holds such an array."""
    encoding = _encoding_of(path)
    if encoding != "utf-8":
        say(f"{path.name}: read as {ENCODING_NAMES[encoding]}")
    beginning = list(itertools.islice((line for line in _lines(path, encoding) if line.strip()), 2))
    first = _json_or_none(beginning[0]) if beginning else None
    if not beginning or (isinstance(first, dict | str) and len(beginning) == 2):
        yield from _read_json_lines(path, encoding)
        return
    whole = "".join(_at_most(MAX_ARRAY_CHARACTERS, _lines(path, encoding)))
    value = _json_or_none(whole)
    if value is None and not beginning[0].lstrip().startswith("["):
        yield from _read_json_lines(path, encoding)
        return
    items = _items_of(_parse_json(whole, str(path)) if value is None else value)
    for number, item in enumerate(items, 1):
        yield _as_row(item, f"{path}, item {number}")


def _at_most(characters: int, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        characters -= len(line)
        if characters < 0:
            return
        yield line


def _read_json_lines(path: Path, encoding: str) -> Iterator[dict | InputError]:
    for number, line in enumerate(_lines(path, encoding), 1):
        where = f"{path}, line {number}"
        if line.isspace():
            continue
        if _UNDECODED.search(line):
            yield InputError(f"{where}: not {ENCODING_NAMES[encoding]}; mend or delete the line")
            continue
        try:
            yield _as_row(_parse_json(line, where), where)
        except InputError as error:
            yield error


def _as_row(value: object, where: str) -> dict | InputError:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return {"messages": value}
    return InputError(f"{where}: neither a JSON object nor a text; mend or delete it")


def _items_of(value: object) -> list:
    """The rows of a whole JSON file: those of its array, of the one array in its object, or the object itself."""
    if isinstance(value, list):
        return [value] if _is_conversation(value) else value
    if isinstance(value, dict) and prompt_column(value) is None:
        arrays = [items for items in value.values() if isinstance(items, list) and items]
        return arrays[0] if len(arrays) == 1 else [value]
    return [value]


def _parse_json(text: str, where: str) -> object:
    try:
        return _JSON.decode(text.strip())
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise InputError(f"{where}: not JSON ({reason}); mend or delete it") from error


def _json_or_none(text: str) -> object:
    try:
        return _parse_json(text, "")
    except InputError:
        return None


def _read_table(path: Path, say: Report) -> Iterator[dict | InputError]:
    """CSV with whatever delimiter; the first line names the columns."""
    encoding = _encoding_of(path)
    sample = list(itertools.islice(_lines(path, encoding), 50))
    named = _DELIMITER_LINE.fullmatch(sample[0]) if sample else None
    skipped = 1 if named else 0
    delimiter = named[1] if named else _delimiter_of(sample)
    kind = "one column" if delimiter == ONE_COLUMN else DELIMITERS.get(delimiter, f"CSV with {delimiter!r}")
    say(f"{path.name}: {kind}, read as {ENCODING_NAMES[encoding]}")
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    record: list[str] = []  # the lines of the row that is being read

    def lines() -> Iterator[str]:
        for line in itertools.islice(_lines(path, encoding), skipped, None):
            record.append(line)
            yield _UNDECODED.sub("\ufffd", line)

    reader = csv.reader(lines(), delimiter=delimiter)
    try:
        names = _column_names(next(iter(reader), []))
        record.clear()
        for cells in reader:
            where = f"{path}, line {reader.line_num + skipped - len(record) + 1}"
            if len(record) > 1 and "".join(record).count('"') % 2:
                yield InputError(f"{where}: a quotation mark opens there and is never closed; mend it")
            elif any(cells):
                yield _table_row(names, cells, where)
            record.clear()
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + skipped}: not CSV ({error})") from error


def _delimiter_of(sample: list[str]) -> str:
    """The delimiter by which the most lines of the sample have as many cells as the header, or `ONE_COLUMN`."""
    best, most = ONE_COLUMN, 0
    for delimiter in DELIMITERS:
        width, *others = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells] or [0]
        regular = sum(cells == width for cells in others) + 1
        if width > 1 and regular > most:
            best, most = delimiter, regular
    return best


def _column_names(header: Sequence[object]) -> list[str]:
    """The names of the columns, made distinct."""
    names: list[str] = []
    for name in (str("" if cell is None else cell).strip() for cell in header):
        number = sum(1 for other in names if other == name or other.startswith(f"{name} ("))
        names.append(f"{name} ({number + 1})" if name in names else name)
    return names


def _table_row(names: list[str], cells: list, where: str) -> dict | InputError:
    if any(cells[len(names) :]):
        return InputError(f"{where}: {len(cells)} cells under {len(names)} column names; put quotes around the texts")
    return dict(itertools.zip_longest(names, cells[: len(names)], fillvalue=""))


def _read_text(path: Path, say: Report) -> Iterator[dict | InputError]:
    """One prompt a line."""
    encoding = _encoding_of(path)
    if encoding != "utf-8":
        say(f"{path.name}: read as {ENCODING_NAMES[encoding]}")
    for line in _lines(path, encoding):
        if text := line.strip("\r\n"):
            yield {"prompt": _UNDECODED.sub("\ufffd", text)}


def _read_workbook(path: Path, say: Report) -> Iterator[dict | InputError]:
    """The first sheet; its first row that is not empty names the columns."""
    try:
        import python_calamine
    except ImportError as error:
        raise InputError(f"{path}: needs python3 -m pip install python-calamine; or save it as CSV") from error
    try:
        with _open_binary(path) as file:
            workbook = python_calamine.load_workbook(io.BytesIO(file.read()))
        sheet = workbook.get_sheet_by_index(0)
        rows = [row for row in sheet.to_python(skip_empty_area=True) if any(cell != "" for cell in row)]
    except (python_calamine.CalamineError, IndexError) as error:
        raise InputError(f"{path} is not a workbook that can be read ({error}); save it as CSV") from error
    if len(workbook.sheet_names) > 1:
        say(f"{path.name}: the first of its {len(workbook.sheet_names)} sheets, {sheet.name!r}")
    names = _column_names(rows[0]) if rows else []
    for row in rows[1:]:
        yield _table_row(names, [_as_json(cell) for cell in row], f"{path}, a row")


def _read_arrow(path: Path, say: Report) -> Iterator[dict | InputError]:
    """Parquet, or the Arrow files of `datasets.save_to_disk`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with _open_binary(path) as file:
            if _suffix(path) == ".arrow":
                batches: Iterable = pyarrow.ipc.open_stream(file)
            else:
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256)
            for batch in batches:
                yield from map(_as_json, batch.to_pylist())
    except pyarrow.ArrowException as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"{path} is not a whole {_suffix(path)} file ({_one_line(error)}); download it again"
        ) from error


def _read_elsewhere(path: Path, say: Report) -> Iterator[dict | InputError]:
    """As `BOUNDED_READERS`, in a process of its own.

    A file of a kilobyte may hold a cell at the far end of a sheet, or one long text a million times. The libraries want
    all memory for it at once, which would end this process, with no error.
    """
    command = [sys.executable, __file__, str(path), str(MAX_READER_MEMORY)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert reader.stdout
    try:
        for line in reader.stdout:
            kind, value = json.loads(line)
            if kind == "fault":
                raise InputError(value)
            if kind == "note":
                say(value)
            else:
                yield value if kind == "row" else InputError(value)
        if reader.wait():
            raise InputError(f"{path} does not fit into memory; split it, or save it as JSONL")
    finally:
        reader.kill()
        reader.stdout.close()
        reader.wait()


def print_rows(path: Path, max_memory: int) -> None:
    """Print what one of `BOUNDED_READERS` reads for `_read_elsewhere`, in so many bytes of address space."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    try:
        for row in _rows_of(path, lambda message: print(json.dumps(["note", message])), BOUNDED_READERS):
            print(json.dumps(["row", row] if isinstance(row, dict) else ["bad", str(row)]))
    except InputError as error:
        print(json.dumps(["fault", str(error)]))
    except Exception as error:  # without it the other process would take the end of this one for a lack of memory
        print(json.dumps(["fault", f"cannot read {path}: {_one_line(error) or type(error).__name__}"]))


BOUNDED_READERS: dict[str, Reader] = {
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
    ".xlsx": _read_workbook,
    ".xls": _read_workbook,
    ".ods": _read_workbook,
}
# What `read_records` reads, by the name's ending; each may be packed as .gz
READERS: dict[str, Reader] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".tab": _read_table,
    ".txt": _read_text,
    **dict.fromkeys(BOUNDED_READERS, _read_elsewhere),
}


def _as_json(value: Any) -> Any:
    """The value as JSON can hold it: dates and the like become text, bytes too, and numbers that are none null."""
    if isinstance(value, dict):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


# --- the prompt of a row ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)  # every row of a file asks for the same few names
def _plain_name(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip().lower())


def prompt_column(fields: dict) -> str | None:
    """The column that plainly holds the prompt: one of the usual names, in any case, or the only column there is."""
    by_name = {_plain_name(str(name)): name for name in reversed(fields)}
    conversations = [by_name[name] for name in CONVERSATION_COLUMNS if name in by_name]
    texts = [by_name[name] for name in PROMPT_COLUMNS if name in by_name]
    filled = [name for name in conversations if fields[name]]
    only = list(fields) if len(fields) == 1 else []
    return next(iter([*filled, *texts, *conversations, *only]), None)


def prompt_in(fields: dict, column: str | None = None) -> str | list[dict] | None:
    """The prompt of a row: a text, or a conversation as messages with role and content; None where there is none.

    A conversation may be OpenAI's messages, ShareGPT's, a chat of ChatGPT's or Claude's export, a request of a batch
    API, or any of these as JSON in a text. The messages' contents come as texts.

    Args:
        column: where it stands (default: `prompt_column`).

    Raises:
        InputError: no column plainly holds a prompt, or it holds something else; names the columns.
    """
    if column and column not in fields:
        raise InputError(f"no column {column!r}, but {', '.join(map(str, fields))}; name it with --prompt_column")
    name, value = column, fields[column] if column else fields
    for _ in range(4):  # a row, its request, that as JSON in a text, its messages
        value = _unpacked(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or _is_conversation([value]):
            break
        if isinstance(value.get("mapping"), dict):
            value = _current_branch(value)
            break
        name = prompt_column(value)
        if name is None:
            raise InputError(f"no prompt among the columns {', '.join(map(str, value))}; name it with --prompt_column")
        value = value[name]
    if value is None or isinstance(value, str):
        return value if value and value.strip() else None
    messages = [value] if isinstance(value, dict) else value
    if isinstance(value, list) and _is_turns(value) and str(name).lower() not in CONVERSATION_COLUMNS:
        messages = [{"role": "user", "content": turn} for turn in value]
    if not isinstance(messages, list):
        raise InputError(f"{name} is neither a text nor a list of messages: {str(value)[:80]}")
    turns = [_as_message(message) for message in messages if not _is_tool_item(message)]
    return turns if any(turn["role"] == "user" and turn["content"].strip() for turn in turns) else None


def _unpacked(text: str) -> object:
    """The conversation that a text holds as JSON, or as Python prints it; else the text itself.

    A JSON list of texts is the user's turns, as arena data has them.
    """
    if not text.lstrip().startswith(("[{", "{", "[\n", "[ ", '["')):
        return text
    value = _json_or_none(text)
    if value is None and text.lstrip().startswith("[{'") and len(text) < MAX_PRINTED_CHARACTERS:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(re.sub(r"\}\s+\{", "}, {", text.strip()))  # numpy prints no commas
    holds_one = isinstance(value, dict) and any(name in value for name in CONVERSATION_COLUMNS)
    return value if holds_one or _is_conversation(value) or _is_turns(value) else text


def _is_turns(value: object) -> bool:
    """Whether this is a list of the user's turns alone."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)


def _is_conversation(value: object) -> bool:
    """Whether this is a list of messages of any known form."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return False
    return any(item.keys() & _ROLE_KEYS and item.keys() & _CONTENT_KEYS for item in value)


def _is_tool_item(message: object) -> bool:
    """Whether this is a call or a result among the input items of the Responses API, which have a type and no role."""
    return isinstance(message, dict) and "type" in message and not message.keys() & _ROLE_KEYS


def _current_branch(chat: dict) -> list:
    """The messages of a chat of ChatGPT's export on the branch that was shown last, without the hidden ones."""
    nodes = {name: node for name, node in chat["mapping"].items() if isinstance(node, dict)}
    name = chat.get("current_node")
    name = name if name in nodes else next((key for key in reversed(nodes) if not nodes[key].get("children")), None)
    branch = []
    while name in nodes:
        node = nodes.pop(name)
        message, name = node.get("message"), node.get("parent")
        if message and not (message.get("metadata") or {}).get("is_visually_hidden_from_conversation"):
            branch.append(message)
    return branch[::-1]


def _as_message(message: object) -> dict:
    """A message of any known form in OpenAI's form, its content as one text."""
    if not isinstance(message, dict) or not message.keys() & _ROLE_KEYS:
        raise InputError("a conversation is a list of messages, each with a role and a content")
    role = next(message[key] for key in _ROLE_KEYS if key in message)
    role = str(role.get("role") if isinstance(role, dict) else role).lower()
    content = next((message[key] for key in _CONTENT_KEYS if key in message), None)
    return {"role": "user" if role in ("human", "prompter") else role, "content": _text_in(content)}


def _text_in(content: object) -> str:
    """The text of a message's content: a text, a list of content parts, or an object with parts."""
    if isinstance(content, dict):
        content = content.get("parts", content.get("text"))
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def first_user_turn(prompt: str | list[dict] | None) -> str:
    """What the user typed first, lone surrogates replaced (they can't be sent); empty where there is nothing."""
    if isinstance(prompt, list):
        contents = (message["content"] for message in prompt if message["role"] == "user")
        prompt = next(contents, None)
    return prompt.encode("utf-8", "replace").decode() if isinstance(prompt, str) else ""


if __name__ == "__main__":
    print_rows(Path(sys.argv[1]), int(sys.argv[2]))
