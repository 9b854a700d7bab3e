"""Contract 1, the row of JSONL that the stages hand to one another: its fields, how it is read, checked and written.

A file has one JSON object a line, is UTF-8, and ends in a newline, so that files can be merged with `cat` and filtered
with `grep '"ROUTE_TO_INFERIOR"'`. Everybody else's files of prompts are read by `prompt_files.py`.

The module also holds what every program shares: `InputError`, `run_script` and the flags that several programs take.
Importing it is cheap: no torch, transformers, datasets or gradio.
"""

import argparse
import errno
import glob
import hashlib
import ipaddress
import json
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import RawIOBase
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PROJECT_ROOT = Path(__file__).resolve().parent

Label = Literal["ROUTE_TO_INFERIOR", "ROUTE_TO_SUPERIOR"]
INFERIOR: Final = "ROUTE_TO_INFERIOR"
SUPERIOR: Final = "ROUTE_TO_SUPERIOR"
LABELS: tuple[Label, Label] = (INFERIOR, SUPERIOR)  # the position is the class index of every checkpoint
TIER_NAMES = {INFERIOR: "inferior", SUPERIOR: "superior"}
TIER_COLORS = {INFERIOR: "#0f766e", SUPERIOR: "#b45309"}  # teal and amber, on the page and in every plot

DATASETS_DIR = Path("final-datasets")
QUESTIONS_FILE = DATASETS_DIR / "mt_bench_questions_labelled.jsonl"
LABELLING_PROMPT_FILE = DATASETS_DIR / "labelling_prompt.txt"
LABELLED_FILES_GLOB = "final-datasets/router_dataset_labelled-*.jsonl"
SAMPLE_FILE = DATASETS_DIR / "sample" / "router_dataset_sample.jsonl"

SIMILARITY = 0.8  # of shingles, from which on two prompts are near duplicates
EVEN_GAIN = 0.15  # gain at which the two routes are worth the same; see probability_from_gain
MAX_MODERATE_BYTES = 200_000_000  # of a file that is read whole
SECONDS_BETWEEN_LINES = 5  # of progress, where stderr is no terminal


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that names it and the remedy."""


# --- rows ------------------------------------------------------------------------------------------------------------


class LabelledPrompt(BaseModel):
    """One labelled prompt. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(description="what the user typed first; not blank")
    label: Label = Field(
        description="the preferred route; where superior_probability is given, SUPERIOR exactly when it is >= 0.5"
    )
    superior_probability: float | None = Field(
        default=None, ge=0, le=1, description="the soft label: how sure the labeller is that the superior model pays"
    )
    inferior_quality: float | None = Field(
        default=None, ge=0, le=1, description="how likely the inferior model's answer is good, by the labeller"
    )
    superior_quality: float | None = Field(
        default=None, ge=0, le=1, description="how likely the superior model's answer is good, by the labeller"
    )
    source: str | None = Field(default=None, description="the data set the prompt came from")
    source_id: str | None = Field(default=None, description="the row of that data set")
    labelled_by: str | None = Field(default=None, description="openai_gpt-3.5-turbo, local_smollm2, human, ...")
    labelling_prompt: str | None = Field(
        default=None, description="first 12 hex digits of the labelling prompt's SHA-256"
    )
    labelled_at: str | None = Field(default=None, description="ISO 8601, UTC")

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is blank")
        return prompt

    @model_validator(mode="after")
    def _label_follows_probability(self) -> "LabelledPrompt":
        if self.superior_probability is not None and self.label != label_of(self.superior_probability):
            raise ValueError(f"label {self.label} contradicts superior_probability {self.superior_probability}")
        return self

    @property
    def soft_label(self) -> float:
        """The superior probability to train on, 0..1: the labeller's where there is one, else the label as 0 or 1."""
        return float(self.label == SUPERIOR) if self.superior_probability is None else self.superior_probability


class LabelledQuestion(LabelledPrompt):
    """A question of MT-Bench, labelled by the human votes between the tiers."""

    question_id: int = Field(description="MT-Bench's number")
    category: str = Field(description="MT-Bench's category")
    turns: list[str] = Field(description="both turns; the prompt is the first")
    superior_wins: int = Field(ge=0, description="votes for a superior model")
    inferior_wins: int = Field(ge=0, description="votes for an inferior model")
    ties: int = Field(ge=0, description="votes for neither")
    inferior_ratio: float = Field(ge=0, le=1, description="(inferior wins + ties / 2) / votes")
    inferior_ratio_low: float = Field(ge=0, le=1, description="lower end of its 95% interval")
    inferior_ratio_high: float = Field(ge=0, le=1, description="upper end of its 95% interval")
    difficulty_rank: int = Field(ge=1, description="1 = hardest for the inferior models")
    in_labelling_prompt: bool = Field(description="true where the labeller was shown it: never a test question")


class Outcome(BaseModel):
    """What really happened: how two models did on one prompt. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(description="what both models were asked")
    group: str | None = Field(default=None, description="subject or category")
    weak_model: str | None = Field(default=None, description="the inferior model's name")
    strong_model: str | None = Field(default=None, description="the superior model's name")
    weak_score: float = Field(allow_inf_nan=False, description="quality of the inferior model's answer")
    strong_score: float = Field(allow_inf_nan=False, description="quality of the superior model's answer")


class RouterAnswer(BaseModel):
    """What a router adds to a row: in predictions, scored files and decision logs. Other fields stay as they were."""

    model_config = ConfigDict(extra="allow")

    router_score: float | None = Field(
        default=None, ge=0, le=1, description="the router's probability that the superior model is needed"
    )
    router_label: Label | None = Field(default=None, description="the route taken")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="SUPERIOR exactly when router_score reaches it"
    )


class ShadowedDecision(RouterAnswer):
    """A row of the endpoint's decision log whose request both models answered (shadow mode). Unknown fields are kept.

    Rows of other requests, and of a log without prompts, lack the two answers.
    """

    prompt: str = Field(description="what the user said, turn by turn")
    inferior_answer: str = Field(description="the inferior model's answer; empty where it held no text")
    superior_answer: str = Field(description="the superior model's answer; empty where it held no text")
    answered_by: Literal["inferior", "superior"] | None = Field(default=None, description="whose answer the client got")
    upstream_model: str | None = Field(default=None, description="that model's name")
    shadow: dict | None = Field(default=None, description="how asking the other model went; `model` is its name")

    def model_of(self, tier: str) -> str:
        """The name of the `inferior` or the `superior` model; the tier where the log does not name it."""
        name = self.upstream_model if tier == self.answered_by else (self.shadow or {}).get("model")
        return str(name or tier)


def has_both_answers(fields: dict) -> bool:
    """Whether a row of a decision log has the answers of both models, as `ShadowedDecision` has."""
    return {"inferior_answer", "superior_answer"} <= fields.keys()


Row = TypeVar("Row", bound=BaseModel)
Item = TypeVar("Item")


def label_of(superior_probability: float, threshold: float = 0.5) -> Label:
    """The route for a superior probability (0..1): SUPERIOR exactly when it reaches the threshold."""
    return SUPERIOR if superior_probability >= threshold else INFERIOR


def probability_from_gain(gain: float) -> float:
    """The soft label of a gain g = superior quality - inferior quality: g² / (g² + 0.15²), and 0 where g is negative.

    It is 0.5 where about one answer in seven would be better from the superior model: a smaller gain is rarely noticed,
    a larger one often. The square parts the two sides more clearly than the gain itself. The map is monotone, so it
    changes no order.
    """
    square = max(0.0, gain) ** 2
    return square / (square + EVEN_GAIN**2)


def normalise_prompt(prompt: str) -> str:
    """The form in which two prompts count as the same: case and white space folded."""
    return " ".join(prompt.casefold().split())


def short_sha256(text: str) -> str:
    """The first 12 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def dedup_key(prompt: str) -> str:
    """The key by which a prompt is found again in a file of rows."""
    return short_sha256(normalise_prompt(prompt))


def near_duplicate_groups(prompts: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    """Group prompts so that near duplicates share a group.

    Two prompts are near duplicates when the estimated Jaccard similarity of their sets of five-character shingles
    (case and white space folded) reaches `similarity`; groups are the connected components. MinHash with
    locality-sensitive hashing (Broder 1997), so time grows with the number of prompts, not of pairs.

    Returns:
        A group number per prompt: the position of the group's first prompt.
    """
    from datasketch import MinHash, MinHashLSH
    from scipy.cluster.hierarchy import DisjointSet

    index = MinHashLSH(threshold=similarity, num_perm=64)
    groups = DisjointSet(range(len(prompts)))
    for i, signature in enumerate(MinHash.generator(map(shingles, prompts), num_perm=64)):
        for j in index.query(signature):
            groups.merge(i, j)
        index.insert(i, signature)
    first: dict[int, int] = {}
    return [first.setdefault(groups[i], i) for i in range(len(prompts))]


class NearDuplicateIndex:
    """Prompts, to be asked whether another one is a near duplicate of any, as `near_duplicate_groups` understands it.

    >>> "what is  the Capital of France?" in NearDuplicateIndex(["What is the capital of France?"])
    True
    """

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        from datasketch import MinHash, MinHashLSH

        self._index = MinHashLSH(threshold=SIMILARITY, num_perm=64)
        self._empty = MinHash(num_perm=64)
        self._size = 0
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: str) -> None:
        """Take in a prompt."""
        self._index.insert(self._size, self._signature(prompt), check_duplication=False)
        self._size += 1

    def __contains__(self, prompt: str) -> bool:
        return bool(self._index.query(self._signature(prompt)))

    def _signature(self, prompt: str) -> Any:
        signature = self._empty.copy()
        signature.update_batch(shingles(prompt))
        return signature


def shingles(prompt: str) -> list[bytes]:
    """The distinct runs of five characters of a prompt, case and white space folded; what MinHash compares."""
    text = normalise_prompt(prompt)
    return list({text[i : i + 5].encode("utf-8", "replace") for i in range(max(1, len(text) - 4))})


# --- reading our own rows --------------------------------------------------------------------------------------------


def expand_paths(patterns: Iterable[str | Path]) -> list[Path]:
    """Files named by paths or globs, each once, in the order given.

    Raises:
        InputError: a path does not exist, or a glob matches nothing.
    """
    paths: dict[Path, None] = {}
    for pattern in map(str, patterns):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise InputError(f"no such file: {pattern}")
        for match in matches:
            if os.path.isdir(match):
                raise InputError(f"{match} is a folder; name a JSONL file or a glob such as '{match}/*.jsonl'")
            paths[Path(match)] = None
    return list(paths)


@overload
def read_rows(path: str | Path) -> Iterator[LabelledPrompt]: ...


@overload
def read_rows(path: str | Path, row_type: type[Row]) -> Iterator[Row]: ...


def read_rows(path: str | Path, row_type: type[BaseModel] = LabelledPrompt) -> Iterator[BaseModel]:
    """The rows of one JSONL file, checked one by one; blank lines are passed over.

    Raises:
        InputError: the file can't be read, or a line is not valid; names the file, the line and the field.
    """
    for where, fields in read_json_lines(path):
        yield check_row(fields, row_type, where)


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """The objects of one JSONL file, each behind the words that name its file and line; blank lines are passed over.

    Raises:
        InputError: the file can't be read, or a line is no JSON object; names the file and the line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, parse_line(line, where)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def row_type_of(path: str | Path) -> type[LabelledPrompt] | type[Outcome]:
    """What the rows of a JSONL file are, by its first row: outcomes have both scores and no label."""
    _, fields = next(read_json_lines(path), ("", {}))
    return Outcome if {"weak_score", "strong_score"} & fields.keys() and "label" not in fields else LabelledPrompt


def parse_line(line: bytes, where: str) -> dict:
    """The JSON object of one line.

    Raises:
        InputError: it is none; `where` names the file and the line.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8; convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise InputError(f"{where}: not JSON ({reason}); mend or delete the line") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: not a JSON object; mend or delete the line")
    return fields


def check_row(fields: dict, row_type: type[Row], where: str) -> Row:
    """The fields as a row.

    Raises:
        InputError: a field is missing or wrong; `where` names the file and the line.
    """
    try:
        return row_type.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "row"
        raise InputError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_row(row: BaseModel | dict) -> bytes:
    r"""One line of JSONL, newline included.

    `grep '"ROUTE_TO_INFERIOR"'` must find a label and nothing else, so wherever a label's text stands in another
    field its underscores are written as `\u005f`, which every JSON reader turns back.
    """
    fields = row.model_dump() if isinstance(row, BaseModel) else row
    return ("{" + ", ".join(map(_encode_field, fields.items())) + "}\n").encode("utf-8", "backslashreplace")


def _encode_field(item: tuple[str, object]) -> str:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("ROUTE_TO_", r"ROUTE\u005fTO\u005f")

    key, value = item
    return f"{dump(key)}: {json.dumps(value) if key == 'label' and value in LABELS else dump(value)}"


def write_rows(path: str | Path, rows: Iterable[BaseModel | dict]) -> None:
    """Write a whole JSONL file; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.writelines(map(encode_row, rows))
    os.replace(partial, path)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a whole text file in UTF-8; a reader never sees half of it."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_moderate_file(path: Path) -> bytes:
    """A file that may be a stranger's: a pipe would never end, and a device fill the memory.

    Raises:
        OSError: it can't be read.
        ValueError: it is no regular file of moderate size.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_MODERATE_BYTES:
        raise ValueError(f"not a regular file of at most {MAX_MODERATE_BYTES:,} bytes")
    return path.read_bytes()


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: it can't be read.
        ValueError: it is too large, holds no object, or one nested too deeply to be read.
    """
    try:
        value = json.loads(read_moderate_file(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def write_json(path: str | Path, value: object) -> None:
    """Write a value as indented JSON; a reader never sees half of it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=float)
    write_text_atomically(path, text + "\n")


class RowAppender:
    """Appends rows to a JSONL file, each in one unbuffered write to its end, so that several processes may share it.

    A kill loses at most the row being written; the partial line it leaves is cut off when the file is opened again,
    but only behind whole rows of the same kind: a key or a text without a newline is never cut.

    Args:
        path: the file; a symbolic link or a device is refused.
        own_fields: fields by which rows of this kind are known; a file that ends in other rows is refused.

    Raises:
        InputError: the file can't be opened, or it is not one of these rows.
    """

    def __init__(self, path: str | Path, own_fields: Iterable[str] = ()) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(self.path, flags, 0o600)
            self._file = os.fdopen(descriptor, "rb+", buffering=0)
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"cannot write {self.path}: not a regular file")
            if os.name == "posix" and mode & 0o077:
                warnings.warn(f"other users of this machine can read {self.path}: chmod 600 {self.path}", stacklevel=2)
            truncate_partial_line(self._file, self.path, set(own_fields))
        except OSError as error:
            reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(f"cannot write {self.path}: {reason}") from error
        except InputError:
            self._file.close()
            raise

    def append(self, row: BaseModel | dict) -> None:
        """Write a row whole or not at all; once this returns, a kill doesn't lose it.

        Raises:
            InputError: the disk is full or gone; what had been written of the row is taken back.
        """
        before = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(encode_row(row))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(before)
            raise InputError(f"cannot write {self.path}: {error.strerror}; free some space, then resume") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def truncate_partial_line(file: RawIOBase, path: Path, own_fields: set[str]) -> None:
    """Cut off what stands behind the last newline of a file of rows: a line that a kill left half written.

    Args:
        file: the file, open for reading and writing.
        path: its name, for messages.
        own_fields: fields that the last whole row must have.

    Raises:
        InputError: the file is not empty and does not hold such rows; it is left as it is.
    """
    size = file.seek(0, os.SEEK_END)
    tail = _tail_of(file, size)
    whole, newline, _ = tail.rpartition(b"\n")
    last_row = whole.rpartition(b"\n")[2]
    if not size or (not own_fields and tail.endswith(b"\n")):
        return
    try:
        is_own = own_fields <= parse_line(last_row, str(path)).keys()
    except InputError:
        is_own = False
    if not is_own:
        raise InputError(f"{path} holds something else than the rows that would be appended; name another file")
    file.truncate(size - len(tail) + len(whole) + len(newline))


def _tail_of(file: RawIOBase, size: int) -> bytes:
    """The end of a file with at least its last whole line, where it has one."""
    length = 65536
    while True:
        file.seek(max(0, size - length))
        tail = file.read(length) or b""
        if length >= size or tail.count(b"\n") > 1:
            return tail
        length *= 4


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by `retry-after-ms` or `Retry-After` (seconds or a date); None without one.

    Args:
        headers: of its response, names in lower case or a mapping that takes any case.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1)):
        value = str(headers.get(name) or "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            return float(value) * unit
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def timestamp() -> str:
    """Now, for file names: 20240722T133228, UTC."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def now() -> str:
    """Now, for rows: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- programs --------------------------------------------------------------------------------------------------------


def program_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser whose `--help` is the program's own docstring, followed by its flags."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


@dataclass(frozen=True)
class Prices:
    """What routing costs: US dollars per million tokens of each model, and the tokens of a prompt with its answer."""

    inferior: float
    superior: float
    tokens_per_prompt: float

    def per_thousand(self, superior_share: Any) -> Any:
        """US dollars for 1,000 prompts of which this share (0..1; a number or an array) goes to the superior model."""
        price = superior_share * self.superior + (1 - superior_share) * self.inferior
        return self.tokens_per_prompt / 1000 * price


def add_price_flags(parser: argparse.ArgumentParser) -> None:
    """The flags from which `prices_from` makes `Prices`."""
    group = parser.add_argument_group("prices")
    add = group.add_argument
    add("--price_superior", type=float, metavar="USD", help="superior model, US dollars per million tokens")
    add("--price_inferior", type=float, metavar="USD", help="inferior model, US dollars per million tokens")
    add(
        "--tokens_per_prompt", type=float, default=800, metavar="N",
        help="tokens of a prompt with its answer (default: 800)",
    )  # fmt: skip


def prices_from(args: argparse.Namespace) -> Prices | None:
    """The prices that the flags give; None where they give none.

    Raises:
        InputError: only one price, a negative one, or no tokens.
    """
    if args.price_superior is None and args.price_inferior is None:
        return None
    if args.price_superior is None or args.price_inferior is None:
        raise InputError("--price_superior and --price_inferior go together, in US dollars per million tokens")
    if min(args.price_superior, args.price_inferior) < 0 or args.tokens_per_prompt <= 0:
        raise InputError("prices must not be negative, and --tokens_per_prompt must be positive")
    return Prices(args.price_inferior, args.price_superior, args.tokens_per_prompt)


class Progress:
    """How far some work is, on stderr: a bar on a terminal, else a line every few seconds.

    Args:
        what: the work, such as "scoring prompts".
        total: how many items there are; None where nobody knows.
        done: how many were done before.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=done, desc=what, disable=not sys.stderr.isatty(), leave=False)
        self._what, self._of = what, f" of {total:,}" if total is not None else ""
        self._done, self._last_line = done, time.monotonic()

    def add(self, count: int = 1, note: str = "") -> None:
        """So many more items are done; the note stands behind the figures."""
        self._bar.update(count)
        self._done += count
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{self._what}: {self._done:,}{self._of}{', ' if note else ''}{note}")

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar where there is one."""
        self._bar.write(printable(line), file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def batches_with_progress(items: Sequence[Item], size: int, what: str) -> Iterator[Sequence[Item]]:
    """Slices of `items`, while stderr says how far the work is.

    Args:
        size: items a slice.
        what: the work, such as "scoring prompts".
    """
    progress = Progress(what, len(items))
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        yield batch
        progress.add(len(batch))
    progress.close()


def load_settings(path: Path) -> None:
    """Put what a `.env` file sets into the environment, where it is not set yet; warn where others can read its keys.

    Raises:
        InputError: the file can't be read, or is not UTF-8.
    """
    from dotenv import load_dotenv

    try:
        found = load_dotenv(path, encoding="utf-8-sig")
        if found and os.name == "posix" and path.stat().st_mode & 0o077:
            warnings.warn(f"other users of this machine can read the keys in {path}: chmod 600 {path}", stacklevel=2)
    except ValueError as error:  # also the zero bytes of UTF-16
        raise InputError(f"{path} is not UTF-8: some editors save another encoding; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def run_script(main: Callable[[], object]) -> None:
    """Run a program's `main()`: with the project's `.env`, one-line warnings, and one-line errors.

    An InputError and a full disk end it with one line on stderr and exit status 1, without a traceback. What the
    program writes is readable for its user only. Variables that are set already win over those of `.env`.
    """
    os.umask(0o077)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {printable(str(message))}", file=sys.stderr)
    try:
        load_settings(PROJECT_ROOT / ".env")
        status = main()
        sys.exit(status if isinstance(status, int) else 0)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed the other end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if not is_disk_full(error):
            raise
        print("error: the disk is full; free some space, then resume or run it again", file=sys.stderr)
        sys.exit(1)


# What the libraries that write weights say of a full disk, each in an error of its own kind
DISK_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "PytorchStreamWriter failed writing")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a full disk."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(t in str(error) for t in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is that of this machine alone."""
    if name == "localhost" or re.fullmatch(r"127(\.\d+){1,3}", name):  # 127.1 is 127.0.0.1
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
