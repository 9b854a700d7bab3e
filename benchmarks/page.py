"""How long the page takes in a browser: to be painted, to be usable, to answer, to score a file; and 20 people at once.

Each visit is a browser of its own with nothing in its cache, and the page is started as its users start it. The file's
10,000 prompts are those of the sample, repeated with a number.

Reads   a checkpoint, the sample, and Debian's Chromium (requirements/dev.txt has what drives it)
Writes  a table in Markdown on stdout

Example:
    python3 benchmarks/page.py --visits 10
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import chromium, describe, server
from finetuning_model.evaluation.markdown import table
from router_data import SAMPLE_FILE, InputError, program_parser, read_rows, run_script
from router_model import newest_checkpoint

FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
PEOPLE = 20
FILE_ROWS = 10_000
FILE_TIMEOUT = 600_000  # milliseconds


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    parser.add_argument("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: newest)")
    parser.add_argument("--visits", type=int, default=10, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.visits < 1:
        raise InputError("--visits must be 1 or more")
    return args


def visits(url: str, prompts: Sequence[str], number: int) -> dict[str, list[float]]:
    """Seconds of each step of so many visits, by its name; the last visit scores a file."""
    painted: list[float] = []
    there: list[float] = []
    decided: list[float] = []
    explained: list[float] = []
    for i in range(number):
        with chromium() as browser:
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(url, wait_until="commit")
            tab.wait_for_selector("#prompt textarea")
            there.append(time.perf_counter() - started)
            painted.append(tab.evaluate(FIRST_PAINT) / 1000)

            started = time.perf_counter()
            tab.fill("#prompt textarea", prompts[i])
            tab.wait_for_selector("#decision [data-decision]")
            decided.append(time.perf_counter() - started)
            started = time.perf_counter()
            tab.click("#explain")
            tab.wait_for_selector("#pushes .push")
            explained.append(time.perf_counter() - started)
            scored = [score_file(tab, prompts)] if i == number - 1 else []
    return {
        "address to first paint": painted,
        "address to a prompt's box": there,
        "typed text to decision": decided,
        "Explain to reasons": explained,
        f"a file of {FILE_ROWS:,} prompts": scored,
    }


def score_file(tab, prompts: Sequence[str]) -> float:
    """Seconds from choosing a file to its figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.jsonl"
        rows = ({"prompt": f"{prompts[i % len(prompts)]} {i}"} for i in range(FILE_ROWS))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tab.get_by_role("tab", name="A file").click()
        started = time.perf_counter()
        tab.set_input_files("#file input[type=file]", path)
        tab.wait_for_selector("#summary .stats", timeout=FILE_TIMEOUT)
        return time.perf_counter() - started


def crowd(url: str, prompts: Sequence[str]) -> list[float]:
    """Seconds of each of many decisions that are asked for at the same time."""
    from gradio_client import Client

    client = Client(url, verbose=False)

    def ask(i: int) -> float:
        started = time.perf_counter()
        client.predict(prompts[i], 0.5, api_name="/predict")
        return time.perf_counter() - started

    with ThreadPoolExecutor(PEOPLE) as people:
        return list(people.map(ask, range(PEOPLE)))


def main(argv: Sequence[str] | None = None) -> None:
    """Visit the page, then print how long each step took."""
    # 1. The page, and what to ask it
    args = parse_args(argv)
    from playwright.sync_api import Error

    folder = Path(args.model_save_dir or newest_checkpoint()).resolve()
    prompts = [row.prompt for row in read_rows(ROOT / SAMPLE_FILE)]

    # 2. Visits one after the other, then many people at once
    command = [sys.executable, str(ROOT / "inference" / "run_gradio_model.py"), "--model_save_dir", str(folder)]
    with server([*command, "--no-feedback", "--server_port", "{port}"], "/") as port:
        url = f"http://127.0.0.1:{port}"
        try:
            measured = visits(url, prompts, args.visits)
        except Error as error:
            raise InputError(f"the browser: {error.message.splitlines()[0]}") from error
        measured[f"{PEOPLE} decisions asked for at once, each answer"] = crowd(url, prompts)

    # 3. The table
    print(describe("gradio"), f"{folder.name}; {args.visits} visits\n", sep="\n")
    rows = [[name, f"{statistics.median(times):.2f}", f"{max(times):.2f}"] for name, times in measured.items()]
    print(table(["", "median, s", "longest, s"], rows))


if __name__ == "__main__":
    run_script(main)
