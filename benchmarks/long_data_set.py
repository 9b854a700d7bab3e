"""What it takes to read a long data set: filter, drop repeats and draw from rows of the shape of lmsys/lmsys-chat-1m.

Reads   nothing: the rows are made up, one in ten is a repeat
Writes  a table in Markdown on stdout: seconds and peak memory of `label_prompts.py --dry_run`

Example:
    python3 benchmarks/long_data_set.py --rows 100000
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe, memory_mb
from finetuning_model.evaluation.markdown import table
from router_data import program_parser, run_script

QUESTION = "how would one go about this, and why? "
DRAWS = {
    "10,000 of them": ["--limit", "10000"],
    "all": ["--limit", "0"],
    "10,000, near duplicates dropped": ["--limit", "10000", "--drop_near_duplicates"],
}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows and draw from them in each way."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        prompts, labelling_prompt = Path(scratch) / "prompts.jsonl", Path(scratch) / "labelling.txt"
        write_rows_like_lmsys(prompts, args.rows)
        labelling_prompt.write_text("Which model should answer?")
        print(describe(), f"\n{args.rows:,} rows, {prompts.stat().st_size / 1e6:,.0f} MB\n", sep="\n", flush=True)
        command = [sys.executable, str(ROOT / "create_dataset" / "label_prompts.py"), "--model", "m", "--dry_run"]
        command += ["--dataset", str(prompts), "--labelling_prompt", str(labelling_prompt)]
        rows = []
        for name, flags in DRAWS.items():
            seconds, peak = seconds_and_peak_mb([*command, *flags])
            rows.append([name, f"{seconds:.0f}", f"{peak:.0f}"])
    print(table(["draw", "seconds", "peak MB"], rows))


def write_rows_like_lmsys(path: Path, count: int) -> None:
    """Rows of the shape of lmsys/lmsys-chat-1m; one in ten is a repeat."""
    unique = max(1, count * 9 // 10)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            text = f"Question {i * 7919 % unique}: " + QUESTION * (i % 9 + 1)
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "An answer. " * 40}]
            row = {"conversation_id": f"{i:032x}", "conversation": turns, "turn": 1, "language": "English"}
            file.write(json.dumps(row | {"openai_moderation": [{"flagged": False}] * 2, "redacted": False}) + "\n")


def seconds_and_peak_mb(command: list[str]) -> tuple[float, float]:
    """What a command takes, in time and memory."""
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_mb(process.pid, "VmHWM"))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, peak


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="(default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
