"""The file that a paid run appends to: one run at a time, each row on disk at once, resumed from its own rows."""

import argparse
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from create_dataset.pricing import BATCH_DISCOUNT, Usage
from router_data import DATASETS_DIR, InputError, RowAppender, dedup_key


def add_output_flags(parser: argparse.ArgumentParser, where_it_exists: str = "the run is resumed") -> None:
    """The flags that say where a run writes, and what becomes of it where the file exists."""
    # fmt: off
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=DATASETS_DIR, help="folder of the new file (default: ./%(default)s)")
    add("--output_file", type=Path, metavar="FILE",
        help=f"write to this file instead; where it exists, {where_it_exists} (default: a new file in --output_dir)")
    # fmt: on


def resuming_command(program: str, words: Sequence[str], args: argparse.Namespace, path: Path) -> str:
    """The command that continues the run which these words started, with `path` as its output file."""
    named = [] if args.output_file else ["--output_file", str(path)]
    return f"{program} {shlex.join([*words, *named])}"


class OutputFile:
    """Appends rows to `path` and failures to `failures-<name>` beside it; use it in a `with` block.

    A kill loses at most the row being written (`router_data.RowAppender`). A lock of the operating system, gone with
    the process, keeps a second run out.

    Attributes:
        provenance: what marks the rows of this run: labelled_by and labelling_prompt.
        done: the keys (`dedup_key`) of this provenance's rows that are there already.
        rows_of_other_runs: how many rows have another provenance.
        failed_in_batch: the keys of failures of the Batch API, each with its batch.
        usage: what the rows and failures already there used (batches at their discount).
        usage_by_role: the same, where rows say it for each of several models.
    """

    def __init__(self, path: str | Path, labelled_by: str, labelling_prompt: str) -> None:
        """Nothing is opened yet; `labelling_prompt` is `short_sha256` of its text."""
        self.path = Path(path)
        self.failures_path = self.path.with_name(f"failures-{self.path.name}")
        self.provenance = {"labelled_by": labelled_by, "labelling_prompt": labelling_prompt}
        self.done: set[str] = set()
        self.failed_in_batch: set[tuple[str, str]] = set()
        self.rows_of_other_runs = 0
        self.usage = Usage()
        self.usage_by_role: defaultdict[str, Usage] = defaultdict(Usage)

    def __enter__(self) -> "OutputFile":
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"another run is writing to {self.path}; wait for it, or name another file") from error
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self._appenders: list[RowAppender] = []
        try:
            self._appenders = [RowAppender(path, {"prompt"}) for path in (self.path, self.failures_path)]
            self._read_back()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.failures_path.stat().st_size:
            self.failures_path.unlink()
        self._close()

    def _close(self) -> None:
        for appender in self._appenders:
            appender.close()
        self._lock.release()

    def _read_back(self) -> None:
        """Take up where earlier runs ended."""
        for row in _rows(self.path):
            self._count_usage(row)
            if all(row.get(name) == value for name, value in self.provenance.items()):
                self.done.add(dedup_key(row["prompt"]))
            else:
                self.rows_of_other_runs += 1
        for row in _rows(self.failures_path):
            self._count_usage(row)
            if row.get("batch"):
                self.failed_in_batch.add((dedup_key(row["prompt"]), row["batch"]))

    def _count_usage(self, row: dict) -> None:
        self.usage += Usage.of_row(row) * (BATCH_DISCOUNT if row.get("batch") else 1)
        for role, tokens in (row.get("usage") or {}).items():
            self.usage_by_role[role] += Usage.of_row(tokens)

    def append(self, row: dict) -> None:
        """Write a labelled row; once this returns, a kill doesn't lose it."""
        self._appenders[0].append(row | self.provenance)
        self.done.add(dedup_key(row["prompt"]))

    def append_failure(self, row: dict) -> None:
        """Write a prompt that got no label, and why."""
        self._appenders[1].append(row | self.provenance)


def _rows(path: Path) -> Iterator[dict]:
    """The rows of an earlier run."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                row["prompt"].strip()
                yield row
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                if line.strip():
                    raise InputError(f"{path}, line {number}: not a row; mend or delete the line") from error
