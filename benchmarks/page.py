"""How long the page takes in a browser: to be painted, to be usable, to answer; and with 20 people at once.

Reads:  a checkpoint, and Debian's Chromium (requirements/dev.txt has what drives it).
Writes: a table in Markdown on the standard output.

The page is started as its users start it; each visit is a browser of its own, with nothing in its cache.

    python3 benchmarks/page.py
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decision import cores, processor
from inference.run_gradio_model import EXAMPLES, PEOPLE_AT_ONCE
from router_data import InputError, run_script
from router_model import newest_checkpoint

CHROMIUM = Path("/usr/bin/chromium")
FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not CHROMIUM.exists():
        raise InputError(f"no {CHROMIUM}; install it: apt-get install chromium")
    from playwright.sync_api import Error

    folder = Path(args.model_save_dir or newest_checkpoint()).resolve()
    with served(folder) as url:
        try:
            measured = visits(url, args.visits)
        except Error as error:
            raise InputError(f"the browser: {error.message.splitlines()[0]}") from error
        measured[f"{PEOPLE_AT_ONCE} explanations asked for at once, each answer"] = crowd(url)
    print(f"{processor()}, {cores()} cores; {folder.name}; {args.visits} visits\n")
    print("| | median, s | longest, s |\n|---|---|---|")
    for name, seconds in measured.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page in a process of its own; yields its address."""
    command = [sys.executable, str(ROOT / "inference" / "run_gradio_model.py"), "--model_save_dir", str(folder)]
    process = subprocess.Popen([*command, "--no-feedback"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        if not (found := re.search(r"http://\S+", process.stdout.readline())):
            raise InputError("the page did not start; what it says stands above")
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


def visits(url: str, number: int) -> dict[str, list[float]]:
    """Seconds of each step of so many visits, by its name."""
    from playwright.sync_api import sync_playwright

    painted, there, decided, explained = steps = [], [], [], []
    with sync_playwright() as playwright:
        for i in range(number):
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(url, wait_until="commit")
            tab.wait_for_selector("#prompt textarea")
            there.append(time.perf_counter() - started)
            painted.append(tab.evaluate(FIRST_PAINT) / 1000)

            started = time.perf_counter()
            tab.fill("#prompt textarea", EXAMPLES[i % len(EXAMPLES)])
            tab.wait_for_selector("#decision [data-decision]")
            decided.append(time.perf_counter() - started)
            started = time.perf_counter()
            tab.click("#explain")
            tab.wait_for_selector("#words .words")
            explained.append(time.perf_counter() - started)
            browser.close()
    names = "address to first paint", "address to a prompt's box", "typed text to decision", "Explain to reasons"
    return dict(zip(names, steps, strict=True))


def crowd(url: str) -> list[float]:
    """Seconds of each of many explanations that are asked for at the same time."""
    from gradio_client import Client

    client = Client(url, verbose=False)

    def ask(i: int) -> float:
        started = time.perf_counter()
        client.predict(f"{EXAMPLES[i % len(EXAMPLES)]} {i}", 0.5, 0.5, 10, 800, api_name="/explain")
        return time.perf_counter() - started

    with ThreadPoolExecutor(PEOPLE_AT_ONCE) as people:
        return list(people.map(ask, range(PEOPLE_AT_ONCE)))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_save_dir", metavar="DIR", help="the checkpoint's folder (default: the newest)")
    parser.add_argument("--visits", type=int, default=10, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.visits < 1:
        parser.error("--visits must be 1 or more")
    return args


if __name__ == "__main__":
    run_script(main)
