"""Score prompts with many workers, on one machine or a Ray cluster: for logs that outgrow `score_prompts.py`.

Reads:  a checkpoint, and JSONL, CSV or parquet: files, a folder, or what Ray can reach, such as s3://bucket/logs/.
Writes: a folder of JSONL files with the fields that score_prompts.py writes, the rows in the order they came.

Needs `python3 -m pip install -r requirements/ray.txt`. On a cluster (RAY_ADDRESS), this project and the checkpoint lie
in the same folder on every machine.

    python3 inference/score_prompts_ray.py --input logs/ --output scored/ --num_workers 2
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.score_prompts import add_router_flags, plain, score_rows
from router_data import InputError, run_script
from router_model import Router, newest_checkpoint

BATCH_ROWS = 512


class Scorer:
    """One worker: loads the checkpoint once, then scores batch after batch."""

    def __init__(self, folder: str, hf_model_name: str | None, backend: str | None, threshold: float | None, column):
        self.router = Router.load(folder, hf_model_name, backend)
        self.threshold, self.column = threshold, column

    def __call__(self, batch):
        import pyarrow

        rows = [plain(row) for row in batch.to_pylist()]
        return pyarrow.Table.from_pylist(score_rows(self.router, rows, self.threshold, self.column))


def read(source: str):
    """The Ray data set of a file or a folder; the suffix, or that of a folder's files, says how to read it."""
    import ray.data

    suffix = Path(source).suffix
    if Path(source).is_dir():
        suffix = next((path.suffix for path in sorted(Path(source).iterdir()) if path.suffix in READERS), "")
    if suffix not in READERS:
        raise InputError(f"{source}: no .jsonl, .csv or .parquet to read there")
    return getattr(ray.data, READERS[suffix])(source)


READERS = {".jsonl": "read_json", ".json": "read_json", ".csv": "read_csv", ".parquet": "read_parquet"}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="PATH", help="prompts: a file or a folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the scored files; must be new")
    parser.add_argument("--num_workers", type=int, default=2, metavar="N", help="processes that score (default: 2)")
    add_router_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed; run: python3 -m pip install -r requirements/ray.txt") from None
    import ray.data

    # 1. The checkpoint, checked here before workers start
    folder = Path(args.model_save_dir or newest_checkpoint()).resolve()
    Router.load(folder, args.hf_model_name, args.backend)
    if os.path.exists(args.output):
        raise InputError(f"{args.output} exists; name a new folder with --output")
    if "://" not in args.input and not os.path.exists(args.input):
        raise InputError(f"no such file or folder: {args.input}")

    # 2. Ray; the readers need a whole CPU beside the workers, or all wait for ever
    ray.init(ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    cpus = ray.cluster_resources().get("CPU", 2)

    # 3. Read, score, write
    scored = read(args.input).map_batches(
        Scorer,
        fn_constructor_args=(str(folder), args.hf_model_name, args.backend, args.threshold, args.prompt_column),
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=args.num_workers),
        num_cpus=min(1, max(cpus - 1, 0.5) / args.num_workers),
    )
    scored.write_json(args.output, force_ascii=False)
    print(f"wrote {args.output}/*.json, one row a line", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
