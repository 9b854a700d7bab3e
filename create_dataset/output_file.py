"""The file that a paid run appends to: one run at a time, each row on disk at once, resumed from its own rows."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from create_dataset.pricing import BATCH_DISCOUNT
from router_data import InputError, encode_row, short_sha256, normalise_prompt


def timestamp() -> str:
    """Now, for file names: 20240722T133228, UTC."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def now() -> str:
    """Now, for rows: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class OutputFile:
    """Appends rows to `path` and failures to `failures-<name>` beside it; use it in a `with` block.

    Every row is one unbuffered write, so a kill loses at most the row being written; its torn line is cut off when
    the file is opened again. A lock of the operating system, gone with the process, keeps a second run out.

    Attributes:
        done: the keys (`dedup_key`) of the rows already there.
        failed_in_batch: the keys of failures of the Batch API, each with its batch.
        input_tokens, output_tokens: what the rows and failures already there used (batches at their discount).
    """

    def __init__(self, path: str | Path, labelled_by: str, labelling_prompt: str) -> None:
        self.path = Path(path)
        self.failures_path = self.path.with_name(f"failures-{self.path.name}")
        self.marks = {"labelled_by": labelled_by, "labelling_prompt": labelling_prompt}
        self.done: set[str] = set()
        self.failed_in_batch: set[tuple[str, str]] = set()
        self.foreign_rows = self.input_tokens = self.output_tokens = 0

    def __enter__(self) -> "OutputFile":
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"another run is writing to {self.path}; wait for it, or name another file") from error
        self._files: list = []
        try:
            self._open()
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise InputError(f"cannot write {self.path}: {error.strerror}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.failures_path.stat().st_size:
            self.failures_path.unlink()
        self._close()

    def _open(self) -> None:
        for path in (self.path, self.failures_path):
            self._files.append(open(path, "ab", buffering=0))  # noqa: SIM115
        for row in self._read_back(self.path):
            self._count_tokens(row)
            if all(row.get(name) == value for name, value in self.marks.items()):
                self.done.add(dedup_key(row["prompt"]))
            else:
                self.foreign_rows += 1
        for row in self._read_back(self.failures_path):
            self._count_tokens(row)
            if row.get("batch"):
                self.failed_in_batch.add((dedup_key(row["prompt"]), row["batch"]))

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._lock.release()

    def _count_tokens(self, row: dict) -> None:
        share = BATCH_DISCOUNT if row.get("batch") else 1
        self.input_tokens += share * (row.get("input_tokens") or 0)
        self.output_tokens += share * (row.get("output_tokens") or 0)

    def _read_back(self, path: Path) -> Iterator[dict]:
        """The rows of an earlier run; a torn last line is cut off first."""
        cut_torn_line(path)
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    row["prompt"].strip()
                    yield row
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    if line.strip():
                        raise InputError(f"{path}, line {number}: not a row; mend or delete the line") from error

    def append(self, row: dict) -> None:
        """Write a labelled row; once this returns, a kill doesn't lose it."""
        write_whole(self._files[0], encode_row(row | self.marks), self.path)
        self.done.add(dedup_key(row["prompt"]))

    def append_failure(self, row: dict) -> None:
        """Write a prompt that got no label, and why."""
        write_whole(self._files[1], encode_row(row | self.marks), self.failures_path)


def dedup_key(prompt: str) -> str:
    """The key by which a prompt is found again in a file of rows."""
    return short_sha256(normalise_prompt(prompt))


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last newline: a line that a kill left half written."""
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if end < size:
            file.truncate(end)


def write_whole(file, line: bytes, path: Path) -> None:
    """Write the line whole or not at all.

    Raises:
        InputError: the disk is full or gone; what had been written of the line is taken back.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        file.truncate(before)
        raise InputError(f"cannot write {path}: {error.strerror}; free some space, then resume") from error
