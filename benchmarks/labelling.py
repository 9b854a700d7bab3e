"""What labelling costs in time and memory, against a local server that answers every request after a fixed time.

Throughput stands beside a plain loop and a pool of threads with the synchronous client; the other parts are the cost
of resuming a file of many rows, and memory while labelling. It needs no key, and writes only to a temporary folder.

Reads   nothing
Writes  tables in Markdown on stdout

Example:
    python3 benchmarks/labelling.py --parts throughput resume
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe, memory_mb, server
from create_dataset import label_prompts
from create_dataset.label_request import LabelRequest
from create_dataset.openai_client import ChatClient
from create_dataset.output_file import OutputFile
from create_dataset.pricing import Budget
from create_dataset.prompt_sources import Prompt
from finetuning_model.evaluation.markdown import table
from router_data import INFERIOR, program_parser, run_script, short_sha256

QUESTION = "how would one go about this, and why? "
REQUEST = LabelRequest("m", "Decide which model should answer the prompt in the JSON object. " * 40)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts asked for, each in a folder of its own."""
    args = parse_args(argv)
    print(describe("openai"))
    for part in args.parts:
        with ExitStack() as stack:
            seconds = args.answer_seconds if part == "throughput" else 0
            command = [sys.executable, str(ROOT / "benchmarks" / "upstream.py"), "--port", "{port}"]
            command += ["--answer_seconds", f"{seconds}", "--content", json.dumps({"label": INFERIOR})]
            port = stack.enter_context(server(command, "/"))
            os.environ |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "x"}
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / "labelling.txt").write_text(REQUEST.labelling_prompt)
            print(f"\n### {part}\n", flush=True)
            PARTS[part](folder, args)


def write_prompts(path: Path, count: int) -> list[str]:
    """A file of so many short prompts, all different; the prompts."""
    prompts = [f"Question {i}: " + QUESTION * (i % 5 + 1) for i in range(count)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return prompts


def label_command(folder: Path, output: str, *more: str) -> list[str]:
    """The command that labels the folder's prompts into a file there."""
    command = [sys.executable, str(ROOT / "create_dataset" / "label_prompts.py"), "--model", REQUEST.model]
    command += ["--dataset", str(folder / "prompts.jsonl"), "--labelling_prompt", str(folder / "labelling.txt")]
    return [*command, "--limit", "0", "--output_file", str(folder / output), *more]


def output_file(path: Path) -> OutputFile:
    """The file of rows that a run with `REQUEST` writes."""
    return OutputFile(path, f"openai_{REQUEST.model}", short_sha256(REQUEST.labelling_prompt.strip()))


# --- throughput ------------------------------------------------------------------------------------------------------


def by_this_project(folder: Path, prompts: list[str], in_flight: int) -> float:
    """Seconds from the first request to the last row."""
    client = ChatClient.from_flags(label_prompts.parse_args(["--max_in_flight", str(in_flight)]))
    todo = [Prompt(text, "benchmark", str(i)) for i, text in enumerate(prompts)]
    with output_file(folder / "async.jsonl") as output:
        started = time.perf_counter()
        asyncio.run(label_prompts.label_all(todo, len(todo), REQUEST, client, Budget(None), output, in_flight))
        assert len(output.done) == len(prompts)
    return time.perf_counter() - started


def by_threads(folder: Path, prompts: list[str], threads: int) -> float:
    """The same work by a pool of threads with the synchronous client; one thread is a plain loop. Seconds."""
    from openai import OpenAI

    client = OpenAI(max_retries=0)
    with output_file(folder / f"threads-{threads}.jsonl") as output:

        def label(prompt: str) -> None:
            answer = client.chat.completions.create(**REQUEST.body(prompt)).choices[0].message.content
            output.append({"prompt": prompt, "label": json.loads(answer or "")["label"]})

        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(label, prompts))
        return time.perf_counter() - started


def measure_throughput(folder: Path, args: argparse.Namespace) -> None:
    """Prompts a second of each way, and what the client alone computes."""
    import openai  # noqa: F401  its import is not what is measured

    prompts = write_prompts(folder / "prompts.jsonl", args.prompts)
    few = prompts[: max(10, len(prompts) // 50)]
    ideal = args.in_flight / args.answer_seconds
    rows = []
    for name, way, texts, in_flight in (
        (f"this project, {args.in_flight} in flight", by_this_project, prompts, args.in_flight),
        (f"{args.in_flight} threads, synchronous client", by_threads, prompts, args.in_flight),
        ("plain loop", by_threads, few, 1),
    ):
        before = time.process_time()
        seconds = way(folder, texts, in_flight)
        rate = len(texts) / seconds
        busy = time.process_time() - before
        rows.append([name, f"{len(texts):,}", f"{seconds:.1f}", f"{rate:.1f}", f"{rate / ideal:.1%}", f"{busy:.1f}"])
    print(table(["", "prompts", "seconds", "prompts/s", f"share of the ideal {ideal:g}/s", "processor s"], rows))


# --- resuming and memory ---------------------------------------------------------------------------------------------


def measure_resume(folder: Path, args: argparse.Namespace) -> None:
    """Seconds to read the rows of an earlier run back, and of the whole command that finds nothing left to do."""
    prompts = write_prompts(folder / "prompts.jsonl", args.rows)
    with output_file(folder / "resume.jsonl") as file:
        for prompt in prompts:
            file.append({"prompt": prompt, "label": INFERIOR, "input_tokens": 600, "output_tokens": 10})
    started = time.perf_counter()
    with file as opened:
        seconds = time.perf_counter() - started
        assert len(opened.done) == args.rows
    started = time.perf_counter()
    stdout = subprocess.run(label_command(folder, "resume.jsonl"), capture_output=True, text=True, check=True).stdout
    assert f"{args.rows:,} of {args.rows:,} prompts are labelled already" in stdout
    whole = time.perf_counter() - started
    figures = [f"{args.rows:,}", f"{seconds:.2f}", f"{whole:.2f}"]
    print(table(["rows", "reading them back, s", "the whole command, s"], [figures]))


def measure_memory(folder: Path, args: argparse.Namespace) -> None:
    """Memory of the command at each tenth of the rows."""
    write_prompts(folder / "prompts.jsonl", args.rows)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(label_command(folder, "memory.jsonl"), stdout=quiet, stderr=quiet)
    output = folder / "memory.jsonl"
    rows: list[list[str]] = []
    while process.poll() is None:
        time.sleep(0.2)
        lines = len(output.read_bytes().splitlines()) if output.exists() else 0
        if lines >= (len(rows) + 1) * args.rows // 10:
            rows.append([f"{lines:,}", f"{memory_mb(process.pid):.0f}"])
    print(table(["rows", "MB"], rows))


PARTS = {"throughput": measure_throughput, "resume": measure_resume, "memory": measure_memory}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    add("--answer_seconds", type=float, default=0.2, help="of the server, for the throughput (default: %(default)s)")
    add("--in_flight", type=int, default=32, help="requests at the same time (default: %(default)s)")
    add("--prompts", type=int, default=3200, help="of the throughput part (default: %(default)s)")
    add("--rows", type=int, default=100_000, help="of the resume and memory parts (default: %(default)s)")
    # fmt: on
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
