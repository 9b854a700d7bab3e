"""Measure labelling against a local server that answers every request after a fixed time.

Prints throughput beside a sequential loop and a thread pool of the synchronous client, the cost of resuming a file of
many rows, memory while labelling, and what reading and drawing from a long data set takes. Needs no key, writes only
to a temporary folder. The figures it gave are in benchmarks/labelling.md.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.label_request import decide, label_request
from create_dataset.openai_client import parse_reply
from create_dataset.output_file import OutputFile, now
from router_data import short_sha256, run_script

LABELLING_PROMPT = "Decide which model should answer the prompt in the JSON object. " * 40  # about 2,500 characters
PARTS = ("throughput", "resume", "memory", "million")
SERVER = """
import asyncio, json, re, sys
message = {"role": "assistant", "content": json.dumps({"label": "ROUTE_TO_INFERIOR"})}
usage = {"prompt_tokens": 600, "completion_tokens": 10}
body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
body = json.dumps(body).encode()
answer = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body
async def talk(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = re.search(rb"content-length: (\\d+)", head, re.I)
            await reader.readexactly(int(length[1]) if length else 0)
            if b"POST" in head[:5]:
                await asyncio.sleep(float(sys.argv[1]))
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    add("--answer_seconds", type=float, default=0.2, help="time the server takes to answer (default: %(default)s)")
    add("--in_flight", type=int, default=32, help="requests at the same time (default: %(default)s)")
    add("--prompts", type=int, default=3200, help="prompts of the throughput part (default: %(default)s)")
    add("--rows", type=int, default=100_000, help="rows of the resume and memory parts (default: %(default)s)")
    add("--data_set_rows", type=int, default=1_000_000, help="rows of the million part (default: %(default)s)")
    return parser.parse_args(argv)


def start_server(seconds: float) -> subprocess.Popen:
    """Start the server in a process of its own and point the client at it."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(seconds)], stdout=subprocess.PIPE, text=True)
    os.environ |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}/v1", "OPENAI_API_KEY": "x"}
    return server


def write_prompts(path: Path, count: int) -> list[str]:
    prompts = [f"Question {i}: " + "how would one go about this, and why? " * (i % 5 + 1) for i in range(count)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return prompts


def command(folder: Path, output: str, *more: str) -> list[str]:
    fixed = [
        "--dataset",
        str(folder / "prompts.jsonl"),
        "--labelling_prompt",
        str(folder / "labelling.txt"),
        "--limit",
        "0",
    ]
    script = str(ROOT / "create_dataset" / "label_prompts.py")
    return [sys.executable, script, *fixed, "--model", "m", "--output_file", str(folder / output), *more]


# --- throughput ---


def by_this_project(folder: Path, prompts: list[str], in_flight: int) -> float:
    """Seconds from the first request to the last row."""
    from create_dataset import label_prompts
    from create_dataset.pricing import Budget
    from create_dataset.prompt_sources import Prompt

    args = label_prompts.parse_args(["--max_in_flight", str(in_flight)])
    todo = [Prompt(text, "benchmark", str(i)) for i, text in enumerate(prompts)]
    with OutputFile(folder / "async.jsonl", "openai_m", short_sha256(LABELLING_PROMPT)) as output:
        start = time.perf_counter()
        asyncio.run(label_prompts.label_all(todo, LABELLING_PROMPT, "m", Budget(None), output, args))
        seconds = time.perf_counter() - start
        assert len(output.done) == len(prompts)
    return seconds


def by_threads(folder: Path, prompts: list[str], threads: int) -> float:
    """The same work by a pool of threads with the synchronous client; one thread is a plain loop. Seconds."""
    from openai import OpenAI

    client = OpenAI(max_retries=0)
    with OutputFile(folder / f"threads-{threads}.jsonl", "openai_m", short_sha256(LABELLING_PROMPT)) as output:

        def label(prompt: str) -> None:
            raw = client.chat.completions.with_raw_response.create(**label_request("m", LABELLING_PROMPT, prompt, 256))
            reply = parse_reply(json.loads(raw.text))
            output.append({"prompt": prompt, "label": decide(reply.choices).label, "labelled_at": now()})

        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(label, prompts))
        return time.perf_counter() - start


def measure_throughput(folder: Path, args: argparse.Namespace) -> None:
    import openai  # noqa: F401  its import is not what is measured

    server = start_server(args.answer_seconds)
    prompts = write_prompts(folder / "prompts.jsonl", args.prompts)
    ideal = args.in_flight / args.answer_seconds
    few = prompts[: max(10, len(prompts) // 50)]
    runs = {
        f"this project, {args.in_flight} in flight": (len(prompts), by_this_project, (prompts, args.in_flight)),
        f"{args.in_flight} threads, synchronous client": (len(prompts), by_threads, (prompts, args.in_flight)),
        "plain loop": (len(few), by_threads, (few, 1)),
    }
    print(f"\n| way | prompts | seconds | prompts/s | share of the ideal {ideal:g}/s | processor s |")
    print("|---|---|---|---|---|---|")
    for name, (count, run, inputs) in runs.items():
        before = time.process_time()
        seconds = run(folder, *inputs)
        busy = time.process_time() - before
        rate = count / seconds
        print(f"| {name} | {count:,} | {seconds:.1f} | {rate:.1f} | {rate / ideal:.1%} | {busy:.1f} |")
    server.terminate()


# --- resume ---


def measure_resume(folder: Path, args: argparse.Namespace) -> None:
    server = start_server(0)
    prompts = write_prompts(folder / "prompts.jsonl", args.rows)
    with OutputFile(
        folder / "resume.jsonl", "openai_m", short_sha256((folder / "labelling.txt").read_text().strip())
    ) as file:
        for prompt in prompts:
            file.append({"prompt": prompt, "label": "ROUTE_TO_INFERIOR", "input_tokens": 600, "output_tokens": 10})
    start = time.perf_counter()
    with file as opened:
        seconds = time.perf_counter() - start
        assert len(opened.done) == args.rows
    start = time.perf_counter()
    said = subprocess.run(command(folder, "resume.jsonl"), capture_output=True, text=True, check=True).stdout
    whole = time.perf_counter() - start
    assert f"{args.rows:,} skipped" in said
    print(f"\nresume on {args.rows:,} rows: reading the file back {seconds:.2f} s; the whole command, with starting "
          f"Python and reading and filtering as many prompts again, {whole:.2f} s")  # fmt: skip
    server.terminate()


# --- memory ---


def memory_mb(process: subprocess.Popen, field: str = "VmRSS") -> float:
    """Memory of a process in MB (10^6 bytes), as Linux counts it; nan where it can't be told."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return float("nan")
    lines = [line for line in status.splitlines() if line.startswith(field + ":")]
    return int(lines[0].split()[1]) * 1024 / 1e6 if lines else float("nan")


def measure_memory(folder: Path, args: argparse.Namespace) -> None:
    server = start_server(0)
    write_prompts(folder / "prompts.jsonl", args.rows)
    process = subprocess.Popen(command(folder, "memory.jsonl"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    output, start = folder / "memory.jsonl", time.perf_counter()
    lines, position, next_mark = 0, 0, args.rows // 10
    print(f"\nmemory while {args.rows:,} prompts are labelled\n\n| rows | MB | seconds |\n|---|---|---|")
    while process.poll() is None:
        time.sleep(0.2)
        if output.exists():
            with open(output, "rb") as file:
                file.seek(position)
                new = file.read()
            lines, position = lines + new.count(b"\n"), position + len(new)
        if lines >= next_mark:
            print(f"| {lines:,} | {memory_mb(process):.0f} | {time.perf_counter() - start:.0f} |", flush=True)
            next_mark += args.rows // 10
    server.terminate()


# --- a long data set ---


def measure_million(folder: Path, args: argparse.Namespace) -> None:
    """Filter, drop repeats and draw from rows of the shape of lmsys/lmsys-chat-1m; one in ten is a repeat."""
    path, unique = folder / "prompts.jsonl", args.data_set_rows * 9 // 10
    with open(path, "w") as file:
        for i in range(args.data_set_rows):
            text = f"Question {i * 7919 % unique}: " + "how would one go about this, and why? " * (i % 9 + 1)
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "An answer. " * 40}]
            row = {"conversation_id": f"{i:032x}", "conversation": turns, "turn": 1, "language": "English"}
            json.dump(row | {"openai_moderation": [{"flagged": False}] * 2, "redacted": False}, file)
            file.write("\n")
    print(
        f"\n{args.data_set_rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB\n\n"
        "| draw | seconds | peak MB |\n|---|---|---|"
    )
    draws = {
        "10,000 of them": ["--limit", "10000"],
        "all": ["--limit", "0"],
        "10,000, near duplicates dropped": ["--limit", "10000", "--drop_near_duplicates"],
    }
    for name, more in draws.items():
        start, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(command(folder, "none.jsonl", *more, "--dry_run"), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, memory_mb(process, "VmHWM"), key=lambda mb: mb if mb == mb else 0.0)
            time.sleep(0.05)
        assert process.returncode == 0
        print(f"| {name} | {time.perf_counter() - start:.0f} | {peak:.0f} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    parts = {
        "throughput": measure_throughput, "resume": measure_resume, "memory": measure_memory, "million": measure_million
    }  # fmt: skip
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "labelling.txt").write_text(LABELLING_PROMPT)
            parts[part](Path(folder), args)
    print(f"\nload of the machine in the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    run_script(main)
