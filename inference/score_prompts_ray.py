"""Score prompts with many workers, on one machine or a Ray cluster: for logs that outgrow `score_prompts.py`.

Reads   a checkpoint, and prompts: a file or a folder of whatever score_prompts.py reads; or JSONL, CSV or parquet that
        Ray can reach elsewhere, such as s3://bucket/logs/
Writes  a folder of JSONL files with the rows that score_prompts.py writes, in the order they came

Needs `python3 -m pip install -r requirements/ray.txt`. On a cluster (RAY_ADDRESS), this project, the checkpoint and
local prompts lie in the same folder on every machine.

Example:
    python3 inference/score_prompts_ray.py --input logs/ --output scored/ --num_workers 2
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.score_prompts import Reports, add_column_flag, check_first_row, count_rows, next_command, summary
from inference.scored_rows import score_rows
from prompt_files import Record, read_records
from router_data import InputError, add_price_flags, encode_row, prices_from, program_parser, run_script
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint

if TYPE_CHECKING:
    import ray.data

BATCH_ROWS = 512
BLOCK_BYTES = 2_000_000  # what one worker takes at a time; Ray's 128 MB would leave the others idle
REMOTE_READERS = {".jsonl": "read_json", ".json": "read_json", ".csv": "read_csv", ".parquet": "read_parquet"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked without starting Ray."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="PATH", help="prompts: a file, a folder or a URL")
    add("--output", required=True, metavar="DIR", help="folder or URL for the scored files; must be new")
    add("--num_workers", type=int, default=2, metavar="N", help="processes that score (default: 2)")
    add_column_flag(parser)
    add_router_flags(parser)
    add_price_flags(parser)
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    if args.num_workers < 1:
        raise InputError("--num_workers must be at least 1")
    if os.path.lexists(args.output):
        raise InputError(f"{args.output} exists; name a new folder with --output")
    return args


def read_file(batch: dict) -> Iterator[dict]:
    """The rows of local files, each as JSON with its file and number; or what is wrong with a line.

    Yields:
        columns of equal length: fields, source, number, problem.
    """
    problems: list[str] = []
    rows: list[tuple] = []

    def take() -> dict:
        taken = [*rows, *((None, None, 0, problem) for problem in problems)]
        rows.clear()
        problems.clear()
        return dict(zip(("fields", "source", "number", "problem"), map(list, zip(*taken, strict=True)), strict=True))

    for record in read_records(batch["path"], problems.append):
        rows.append((encode_row(record.fields).decode(), record.source, record.number, None))
        if len(rows) == BATCH_ROWS:
            yield take()
    if rows or problems:
        yield take()


class Scorer:
    """One worker: loads the checkpoint once, then scores batch after batch."""

    def __init__(self, folder: str, hf_model_name: str | None, threshold: float, column: str | None) -> None:
        self.router = Router.load(folder, hf_model_name)
        self.threshold, self.column = threshold, column

    def __call__(self, batch: dict) -> dict:
        """Columns line (a scored row of JSONL) and problem, of which one is None in each row."""
        rows = list(zip(batch["fields"], batch["source"], batch["number"], batch["problem"], strict=True))
        # A column in which everything is None comes from Ray as NaN
        records = [
            Record(json.loads(fields), source, int(number))
            for fields, source, number, _ in rows
            if isinstance(fields, str)
        ]
        problems = [problem for *_, problem in rows if isinstance(problem, str)]
        lines = [
            encode_row(row).decode()
            for row in score_rows(self.router, records, self.threshold, self.column, problems.append)
        ]
        return {"line": [*lines, *[None] * len(problems)], "problem": [*[None] * len(lines), *problems]}


def dataset_of(source: str) -> "ray.data.Dataset":
    """The Ray data set of the rows, as `read_file` yields them.

    Raises:
        InputError: a URL whose kind of file Ray can't read.
    """
    import ray.data

    if "://" not in source:
        return ray.data.from_items([{"path": source}]).map_batches(read_file, batch_size=1)
    reader = REMOTE_READERS.get(Path(source).suffix or ".parquet")
    if reader is None:
        raise InputError(f"{source}: no .jsonl, .csv or .parquet to read there")

    def as_json(batch: Any) -> dict:
        rows = [json.dumps(row, default=str) for row in batch.to_pylist()]
        size = len(rows)
        return {"fields": rows, "source": [source] * size, "number": [0] * size, "problem": [None] * size}

    return getattr(ray.data, reader)(source).map_batches(as_json, batch_format="pyarrow")


def folder_sink(output: str) -> Any:
    """A sink of Ray that writes the lines of each block into a file of the folder, and counts what it writes.

    Its attributes after the run: `counts` as of `count_rows`, and `problems`, the bad rows.
    """
    from pyarrow.fs import FileSystem
    from ray.data.datasource.datasink import Datasink

    class FolderSink(Datasink):
        def write(self, blocks: Any, ctx: Any) -> tuple[Counter, list[str]]:
            system, folder = FileSystem.from_uri(output if "://" in output else os.path.abspath(output))
            system.create_dir(folder)
            counts: Counter = Counter()
            problems: list[str] = []
            with system.open_output_stream(f"{folder}/{ctx.task_idx:06}.jsonl") as file:
                for block in blocks:
                    lines = [line for line in block.column("line").to_pylist() if line]
                    problems += [problem for problem in block.column("problem").to_pylist() if problem]
                    counts += count_rows(map(json.loads, lines))
                    file.write("".join(lines).encode())
            return counts, problems

        def on_write_complete(self, write_result: Any) -> None:
            self.counts: Counter = sum((counts for counts, _ in write_result.write_returns), Counter())
            self.problems = [problem for _, problems in write_result.write_returns for problem in problems]

    return FolderSink()


def main(argv: Sequence[str] | None = None) -> None:
    """Score the input into the output's folder."""
    args = parse_args(argv)
    prices = prices_from(args)
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed; run: python3 -m pip install -r requirements/ray.txt") from None
    import ray.data

    # 1. The checkpoint and the first row, checked here before workers start
    folder = Path(args.model_save_dir or newest_checkpoint()).resolve()
    router = Router.load(folder, args.hf_model_name)
    threshold = router.settings.threshold if args.threshold is None else args.threshold
    source = args.input if "://" in args.input else os.path.abspath(args.input)
    if "://" not in source:
        check_first_row(read_records([source], lambda problem: None), args.prompt_column)

    # 2. Ray; the readers need a whole CPU beside the workers, or all wait for ever
    ray.init(ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    cpus = ray.cluster_resources().get("CPU", 2)

    # 3. Read, score, write
    started = time.perf_counter()
    scored = dataset_of(source).map_batches(
        Scorer,
        fn_constructor_args=(str(folder), args.hf_model_name, threshold, args.prompt_column),
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=args.num_workers),
        num_cpus=min(1, max(cpus - 1, 0.5) / args.num_workers),
    )
    sink = folder_sink(args.output)
    scored.write_datasink(sink)

    # 4. What that means
    unreadable = Reports()
    for problem in sink.problems:
        unreadable(problem)
    seconds = time.perf_counter() - started
    print(summary(sink.counts, unreadable.count, seconds, sink.counts["rows"], prices), file=sys.stderr)
    print(f"wrote {args.output}/*.jsonl, one row a line")
    print(next_command(args, router))


if __name__ == "__main__":
    run_script(main)
