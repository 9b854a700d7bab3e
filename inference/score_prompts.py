"""Score a file of prompts: which model each goes to, and what the router saves.

Reads   a checkpoint, and prompts: JSONL, JSON, CSV, TSV, Excel, parquet or text, also as .gz; texts or conversations.
        The standard input by default, where a line that is not a JSON object is a prompt itself.
Writes  JSONL, every row as it came and in the same order, plus router_score, router_label, threshold, router,
        truncated, framed, unfamiliar, tokens_scored and characters_received; to the standard output by default.

Memory stays bounded however long a JSONL, CSV or parquet file is. A run that was stopped continues where it was when it
is started again. Rows that can't be read are named and passed over.

Example:
    python3 inference/score_prompts.py --input prompts.jsonl --output scored.jsonl
    echo "What is the capital of France?" | python3 inference/score_prompts.py
"""

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.scored_rows import ANSWER_FIELDS, score_rows
from prompt_files import PROMPT_COLUMNS, Record, Report, prompt_column, prompt_in, read_records
from router_data import (
    INFERIOR,
    SUPERIOR,
    InputError,
    Prices,
    Progress,
    RowAppender,
    add_price_flags,
    encode_row,
    prices_from,
    printable,
    program_parser,
    run_script,
)
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint

STDIO = "-"
BATCH_ROWS = 512  # scored and written together; a stopped run loses at most these
BATCH_CHARACTERS = 16_000_000
SCORED_FIELDS = {"router_score", "router_label", "threshold", "router"}  # by which a scored row is known
MAX_REPORTS = 20  # bad rows that are named; the others are counted


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked without reading anything large."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--input", default=STDIO, metavar="FILE", help="prompts; - is the standard input (default: -)")
    add("--output", default=STDIO, metavar="FILE", help="JSONL; - is the standard output (default: -)")
    add_column_flag(parser)
    add_router_flags(parser)
    add_price_flags(parser)
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    check_output(args.input, args.output)
    return args


def add_column_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that names the prompt's column."""
    parser.add_argument(
        "--prompt_column", metavar="NAME",
        help=f"where the prompt is (default: messages or conversations, else the first of {', '.join(PROMPT_COLUMNS)})",
    )  # fmt: skip


def check_output(source: str, output: str) -> None:
    """Refuse an output file that is the input, or that is not a plain file.

    Raises:
        InputError: it is one of these.
    """
    if output == STDIO or not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isfile(output):
        raise InputError(f"--output {output} is not a plain file; name another")
    if source != STDIO and os.path.exists(source) and os.path.samefile(source, output):
        raise InputError(f"--output {output} is the input itself; name another")


def read_input(source: str, bad_row: Report) -> Iterator[Record]:
    """The rows of a file, or of the standard input."""
    if source != STDIO:
        return read_records([source], bad_row, say_to_stderr)
    return (Record(row, "standard input", number) for number, row in enumerate(lines_of_standard_input(), 1))


def lines_of_standard_input() -> Iterator[dict]:
    """A row for each line: its JSON object, else the line as a prompt."""
    if sys.stdin.isatty():
        print("one prompt a line; Ctrl+D ends it", file=sys.stderr)
    for line in sys.stdin.buffer:
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("{"):
            try:
                yield json.loads(text, parse_constant=lambda name: None)
            except (ValueError, RecursionError):
                yield {"prompt": text}
        elif text:
            yield {"prompt": text}


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Rows in groups of bounded size."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += sum(len(value) for value in record.fields.values() if isinstance(value, str))
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def done_rows(path: str) -> Iterator[dict]:
    """The rows that an earlier run wrote to the output. Nothing is changed here.

    Raises:
        InputError: the file holds something else; so does one without a single whole scored row.
    """
    if path == STDIO or not os.path.exists(path) or not os.path.getsize(path):
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            is_whole = line.endswith(b"\n")
            if number and not is_whole:
                return  # a kill left it half written
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not is_whole or not isinstance(row, dict) or not row.keys() >= SCORED_FIELDS:
                raise InputError(f"{path} holds something else than scored prompts; name another --output")
            yield row


def skip_done(records: Iterator[Record], output: str, router: Router, threshold: float) -> Counter:
    """Pass over the input rows that are scored already; they must be these rows, by this router and threshold.

    Returns:
        As `count_rows`, of the rows passed over.
    """
    counts: Counter = Counter()
    same = {"router": router.model_save_dir and router.model_save_dir.resolve().name, "threshold": threshold}
    for number, scored in enumerate(done_rows(output), 1):
        record = next(records, None)
        expected = {} if record is None else json.loads(encode_row(record.fields))
        expected = {name: value for name, value in expected.items() if name not in ANSWER_FIELDS} | same
        if record is None or any(scored.get(name) != value for name, value in expected.items()):
            raise InputError(
                f"{output}, line {number}, is of another input, router or threshold; "
                "name another --output, or delete the file to score anew"
            )
        counts += count_rows([scored])
    return counts


def check_first_row(records: Iterator[Record], column: str | None) -> Iterator[Record]:
    """The same rows, unless the first has no column for the prompt: then the others have none either.

    Raises:
        InputError: it has none; names the columns.
    """
    first = next(records, None)
    if first is None:
        return records
    if (column or prompt_column(first.fields)) not in first.fields:
        prompt_in(first.fields, column)
    return itertools.chain([first], records)


def count_rows(rows: Iterable[dict]) -> Counter:
    """Rows by router_label (None: blank), with "rows", "truncated" and "unfamiliar"."""
    counts: Counter = Counter()
    for row in rows:
        counts.update(["rows", row["router_label"], *(name for name in ("truncated", "unfamiliar") if row.get(name))])
    return counts


def rows_in(source: str) -> int | None:
    """How many rows a file has where that is quick to say; for the progress bar."""
    path = Path(source)
    if path.suffix.lower() == ".jsonl" and path.is_file():
        with open(path, "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return None


class Reports:
    """Names bad rows on stderr, the first `MAX_REPORTS` of them.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: str) -> None:
        """Name one more."""
        self.count += 1
        if self.count <= MAX_REPORTS:
            say_to_stderr(f"passed over: {message}")
        if self.count == MAX_REPORTS:
            say_to_stderr("further rows that can't be read are only counted")


def say_to_stderr(message: str) -> None:
    """A line on stderr, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(printable(message), file=sys.stderr)


def summary(counts: Counter, bad_rows: int, seconds: float, scored: int, prices: Prices | None) -> str:
    """The last lines: shares, money, speed."""
    routed = counts[SUPERIOR] + counts[INFERIOR]
    share = counts[SUPERIOR] / max(routed, 1)
    lines = [
        f"{routed:,} prompts: {counts[SUPERIOR]:,} ({share:.1%}) to the superior model, {counts[INFERIOR]:,} "
        f"({1 - share if routed else 0:.1%}) to the inferior model",
        f"{counts['truncated']:,} too long to score whole, {counts['unfamiliar']:,} unfamiliar; "
        f"{counts[None]:,} rows without a prompt, {bad_rows:,} rows or prompts that can't be read",
    ]
    if prices:
        alone, cost = (prices.per_thousand(part) * routed / 1000 for part in (1, share))
        change = cost / alone - 1 if alone else 0
        difference = f"{-change:.1%} saved" if change <= 0 else f"{change:.1%} more"
        lines.append(f"costs ${cost:,.2f} instead of ${alone:,.2f} with the superior model alone: {difference}")
    lines.append(f"scored {scored:,} in {seconds:.1f} s ({scored / max(seconds, 1e-9):,.0f} a second)")
    return "\n".join(lines)


def next_command(args: argparse.Namespace, router: Router) -> str:
    """What to run after this."""
    folder = shlex.quote(str(router.model_save_dir))
    if args.input == STDIO:
        return f"next: python3 inference/run_gradio_model.py --model_save_dir {folder}"
    prompts = shlex.quote(args.input)
    return f"next: python3 finetuning_model/choose_threshold.py --model_save_dir {folder} --prompts {prompts}"


def main(argv: Sequence[str] | None = None) -> None:
    """Score the input into the output."""
    # 1. What to score, and with what
    args = parse_args(argv)
    prices = prices_from(args)
    unreadable = Reports()
    records = check_first_row(read_input(args.input, unreadable), args.prompt_column)
    router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)
    threshold = router.settings.threshold if args.threshold is None else args.threshold

    # 2. The rows that an earlier run has scored already
    counts = skip_done(records, args.output, router, threshold)
    done = counts["rows"]
    if done:
        say_to_stderr(f"{done:,} rows of {args.output} are there already; continuing with the next")

    # 3. Batch by batch: score, write
    started = time.perf_counter()
    appender = None if args.output == STDIO else RowAppender(args.output)
    progress = Progress("scoring prompts", rows_in(args.input), done)
    for batch in batches(records):
        rows = score_rows(router, batch, threshold, args.prompt_column, unreadable)
        write(rows, appender)
        counts += count_rows(rows)
        progress.add(len(rows))
    progress.close()
    if appender:
        appender.close()

    # 4. What that means
    seconds = time.perf_counter() - started
    print(summary(counts, unreadable.count, seconds, counts["rows"] - done, prices), file=sys.stderr)
    print(next_command(args, router), file=sys.stderr if args.output == STDIO else sys.stdout)


def write(rows: Iterable[dict], appender: RowAppender | None) -> None:
    """Write rows to the output file, or to the standard output."""
    for row in rows:
        if appender:
            appender.append(row)
        else:
            sys.stdout.buffer.write(encode_row(row))
    sys.stdout.flush()


if __name__ == "__main__":
    run_script(main)
