"""Where prompts come from: reading any data set row by row, filtering, dropping repeats, drawing a sample by seed.

One pass over the data and little memory, however long the data set is: what may be drawn is kept in a temporary file
on disk, and per prompt only 8 bytes of a hash, a rank and an offset stay in memory.
"""

import csv
import gzip
import hashlib
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from create_dataset.output_file import dedup_key
from router_data import InputError, expand_paths, shingles, normalise_prompt

PROMPT_COLUMNS = ("prompt", "question", "instruction", "text", "query", "input")
CONVERSATION_COLUMNS = ("conversation", "conversations", "messages")
ID_COLUMNS = ("conversation_id", "question_id", "id", "source_id")
HUB_SPLIT = "train"
NEAR_DUPLICATE_SIMILARITY = 0.8
SIGNATURE_SIZE = 64  # hashes per MinHash signature


class Prompt(NamedTuple):
    """A prompt to label and where it came from."""

    text: str
    source: str
    source_id: str


class Record(NamedTuple):
    """A row of a data set, before anything is known about it."""

    fields: dict
    source: str
    number: int


# --- reading ---------------------------------------------------------------------------------------------------------


def read_records(datasets: Iterable[str]) -> Iterator[Record]:
    """The rows of hub data sets (streamed) and of local JSONL, CSV or parquet files, one at a time.

    Raises:
        InputError: no such file, an unknown kind of file, a malformed line (named), or a hub that refuses or is away.
    """
    for dataset in datasets:
        yield from _read_files(dataset) if looks_local(dataset) else _read_hub(dataset)


def _read_files(dataset: str) -> Iterator[Record]:
    for path in expand_paths([str(Path(dataset) / "*.parquet") if os.path.isdir(dataset) else dataset]):
        read = READERS.get(path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix)
        if read is None:
            raise InputError(f"{path}: don't know how to read '{path.suffix}' files; use .jsonl, .csv or .parquet")
        for number, fields in enumerate(read(path), 1):
            yield Record(fields, path.name, number)


def looks_local(dataset: str) -> bool:
    """Whether the name means files here rather than a data set of the hub."""
    return os.path.exists(dataset) or "*" in dataset or Path(dataset.removesuffix(".gz")).suffix in READERS


def _open_text(path: Path):
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _read_jsonl(path: Path) -> Iterator[dict]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}); mend or delete the line") from error
            if not isinstance(fields, dict):
                raise InputError(f"{path}, line {number}: not a JSON object; mend or delete the line")
            yield fields


def _read_csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            yield from csv.DictReader(file)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _read_parquet(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: not a parquet file ({error})") from error


def _read_hub(dataset: str) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(dataset, split=HUB_SPLIT, streaming=True)
        for number, fields in enumerate(rows, 1):
            yield Record(fields, dataset, number)
    except DatasetNotFoundError as error:
        raise InputError(
            f"cannot read {dataset}: there is no such data set or file, or it is gated; if gated, accept its terms at "
            f"https://huggingface.co/datasets/{dataset} and put a read token as HF_TOKEN in .env"
        ) from error
    except Exception as error:  # the hub client raises a dozen kinds, most of them for a network that is away
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"cannot read {dataset} from the hub ({reason}); --dataset also takes a local file") from error


READERS: dict[str, Callable[[Path], Iterator[dict]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


# --- filtering -------------------------------------------------------------------------------------------------------


@dataclass
class Filters:
    """Which prompts are kept; `dropped` counts the others by reason."""

    prompt_column: str | None = None
    languages: frozenset[str] = frozenset()  # casefolded; empty keeps all
    max_characters: int = 8000
    excluded_keys: frozenset[str] = frozenset()  # the benchmark's questions
    dropped: Counter = field(default_factory=Counter)
    rows: int = 0
    _seen: set[int] = field(default_factory=set, repr=False)

    def prompts(self, records: Iterable[Record]) -> Iterator[tuple[Prompt, int]]:
        """The prompts that pass, each with the 64-bit hash of its key; repeats (up to case and space) once."""
        for record in records:
            self.rows += 1
            text = self.first_prompt(record)
            key = normalise_prompt(text)
            digest = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())
            reason = self.reason_to_drop(record.fields, text, key) or (digest in self._seen and "repeated")
            if reason:
                self.dropped[reason] += 1
                continue
            self._seen.add(digest)
            source_id = next((record.fields[c] for c in ID_COLUMNS if record.fields.get(c)), record.number)
            yield Prompt(text, record.source, str(source_id)), digest

    def reason_to_drop(self, fields: dict, text: str, key: str) -> str | None:
        if not key:
            return "blank or no prompt"
        if is_flagged(fields.get("openai_moderation")):
            return "flagged by moderation"
        if fields.get("redacted") in (True, "True", "true"):
            return "redacted"
        language = fields.get("language")
        if self.languages and isinstance(language, str) and language.casefold() not in self.languages:
            return "other language"
        if len(text) > self.max_characters:
            return f"longer than {self.max_characters} characters"
        return "MT-Bench question" if key in self.excluded_keys else None

    def first_prompt(self, record: Record) -> str:
        """What the user typed first; empty where the row has none.

        Raises:
            InputError: the data set has no column that could hold a prompt.
        """
        fields = record.fields
        if self.prompt_column:
            if self.prompt_column not in fields:
                raise InputError(f"{record.source}, row {record.number}: no column '{self.prompt_column}'")
            value = fields[self.prompt_column]
            return first_user_turn(value) if isinstance(value, list) else text_of(value)
        for column in CONVERSATION_COLUMNS:
            if isinstance(fields.get(column), list):
                return first_user_turn(fields[column])
        for column in PROMPT_COLUMNS:
            if column in fields:
                return text_of(fields[column])
        if any(column in fields for column in CONVERSATION_COLUMNS):
            return ""
        raise InputError(
            f"{record.source}, row {record.number}: no prompt among the columns {', '.join(map(str, fields))}; "
            "name it with --prompt_column"
        )


def first_user_turn(conversation: list) -> str:
    """The content of the first user message of a conversation; empty where there is none."""
    for message in conversation:
        if isinstance(message, dict) and message.get("role", message.get("from")) in ("user", "human"):
            return text_of(message.get("content", message.get("value")))
    return ""


def text_of(value: object) -> str:
    """The value where it is text (lone surrogates replaced: they cannot be sent), else empty."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def is_flagged(moderation: object) -> bool:
    """Whether moderation flagged any message of the conversation."""
    results = moderation if isinstance(moderation, list) else [moderation]
    return any(isinstance(result, dict) and result.get("flagged") for result in results)


# --- drawing ---------------------------------------------------------------------------------------------------------


class DrawnPrompts:
    """A sample without replacement, in random order, kept in a temporary file.

    A prompt's rank is a hash of the seed and its text, and the `limit` lowest ranks are drawn: one pass suffices, the
    order of the rows doesn't matter, any first part of the sample is itself a sample, and a larger limit with the
    same seed begins with the smaller one's prompts.
    """

    def __init__(
        self,
        prompts: Iterable[tuple[Prompt, int]],
        limit: int,
        seed: int,
        folder: Path,
        drop_near_duplicates: bool = False,
    ) -> None:
        """`limit` 0 draws all; the temporary file lives in `folder` and vanishes with the process."""
        folder.mkdir(parents=True, exist_ok=True)
        self.near_duplicates = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ranks, self._offsets = array("Q"), array("Q")
        keep_at_most = 0 if drop_near_duplicates else limit  # near duplicates are only found later, in the order of the ranks
        highest = 2**64
        salt = str(seed).encode()
        for prompt, digest in prompts:
            rank = int.from_bytes(hashlib.blake2b(digest.to_bytes(8), digest_size=8, key=salt).digest())
            if rank >= highest:
                continue
            self._ranks.append(rank)
            self._offsets.append(self._file.tell())
            self._file.write(json.dumps(prompt).encode() + b"\n")
            if keep_at_most and len(self._ranks) >= 2 * keep_at_most + 1000:
                highest = self._keep_lowest(keep_at_most)
        self._keep_lowest(keep_at_most or len(self._ranks))
        if drop_near_duplicates:
            self._drop_near_duplicates(limit or len(self._ranks))

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Prompt]:
        for offset in self._offsets:
            yield self._read(offset)

    def leave_out(self, done: Container[str]) -> None:
        """Forget the prompts whose `dedup_key` is in `done`."""
        self._offsets = array("Q", (o for o in self._offsets if dedup_key(self._read(o).text) not in done))

    def _read(self, offset: int) -> Prompt:
        self._file.seek(offset)
        return Prompt(*json.loads(self._file.readline()))

    def _keep_lowest(self, count: int) -> int:
        """Keep the `count` lowest ranks, in order; returns the bound above which no rank can be drawn any more."""
        import numpy as np

        ranks = np.frombuffer(self._ranks, dtype=np.uint64)
        order = np.argsort(ranks)[:count]
        offsets = np.frombuffer(self._offsets, dtype=np.uint64)[order]
        ranks = ranks[order]
        self._ranks, self._offsets = array("Q", ranks.tobytes()), array("Q", offsets.tobytes())
        return int(ranks[-1]) if len(ranks) == count and count else 2**64

    def _drop_near_duplicates(self, limit: int) -> None:
        """Walk in the order of the ranks and skip what is close to a prompt drawn already, until `limit` are drawn.

        MinHash with locality-sensitive hashing over shingles of five characters, as in `router_data.near_duplicate_groups`;
        the index holds only the prompts drawn.
        """
        from datasketch import MinHash, MinHashLSH

        index = MinHashLSH(threshold=NEAR_DUPLICATE_SIMILARITY, num_perm=SIGNATURE_SIZE)
        kept = array("Q")
        signatures = MinHash.generator((shingles(prompt.text) for prompt in self), num_perm=SIGNATURE_SIZE)
        for offset, signature in zip(self._offsets, signatures, strict=True):
            if index.query(signature):
                self.near_duplicates += 1
                continue
            index.insert(offset, signature, check_duplication=False)
            kept.append(offset)
            if len(kept) == limit:
                break
        self._offsets = kept
