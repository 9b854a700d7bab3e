"""What the endpoint costs: latency added to the upstream, requests a second, first byte of a stream; beside LiteLLM's.

Reads:  a checkpoint, and prompts (the sample's).
Writes: a table in Markdown on the standard output.

A server in a process of its own plays both models: it answers at once, always the same, also as a stream. It is asked
directly, through inference/serve_openai_api.py, and, where --litellm_python names an interpreter that has LiteLLM,
through LiteLLM's proxy with one plain model and with inference/litellm_router.py. All are started as their users start
them and take turns, in rounds, with the same client and the same prompts, so that what else happens on the machine
meets all of them.

    python3 benchmarks/endpoint.py --litellm_python litellm-venv/bin/python3
"""

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decision import SAMPLE, cores, processor
from router_data import InputError, read_rows, run_script

ENDPOINT = ROOT / "inference" / "serve_openai_api.py"
LITELLM_CONFIG = ROOT / "inference" / "litellm_config.yaml"
PLAIN_CONFIG = {  # LiteLLM reads YAML, and JSON is YAML
    "model_list": [
        {
            "model_name": "inferior",
            "litellm_params": {
                "model": "os.environ/INFERIOR_MODEL",
                "custom_llm_provider": "openai",
                "api_base": "os.environ/INFERIOR_BASE_URL",
                "api_key": "os.environ/INFERIOR_API_KEY",
            },
        }
    ]
}
PACKAGES = "starlette uvicorn uvloop httptools aiohttp onnxruntime tokenizers".split()
LITELLM_PACKAGES = "litellm fastapi uvicorn uvloop aiohttp openai onnxruntime".split()
READY_SECONDS = 180
ANSWER_SECONDS = 60  # for one answer; the upstream needs none
WARM_UP = 20  # requests before the first round
PIECES = 5  # of a stream
GAP_SECONDS = 0.01  # between two of them: a proxy that gathers a stream would show it in the first byte


@dataclass
class Target:
    """What is asked, and how long its answers took.

    Attributes:
        name: for the table.
        port: on 127.0.0.1.
        model: the model asked for.
        latencies: seconds of each request at concurrency 1, round by round.
        first_bytes: seconds to the first byte of each stream's body, round by round.
        rates: requests a second at the higher concurrency, of each round.
    """

    name: str
    port: int
    model: str
    latencies: list[list[float]] = field(default_factory=list)
    first_bytes: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from router_model import Router, newest_checkpoint

    # 1. The prompts, and how long they are
    folder = Path(args.model_save_dir or newest_checkpoint()).resolve()
    router = Router.load(folder)
    prompts = [row.prompt for row in read_rows(args.prompts)]
    random.Random(0).shuffle(prompts)
    asked = prompts[: args.rounds * args.requests]
    tokens = statistics.median(len(encoded.ids) for encoded in router.encoder.encode(asked))
    del router

    # 2. The servers
    with ExitStack() as stack:
        upstream = stack.enter_context(upstream_server())
        environment = environment_for(upstream, folder)
        targets = [Target("upstream, directly", upstream, "inferior")]
        endpoint = stack.enter_context(server(endpoint_command(folder), "/health", environment))
        targets += [
            Target("endpoint, `router`", endpoint, "router"),
            Target("endpoint, `inferior` (nothing scored)", endpoint, "inferior"),
        ]
        if args.litellm_python:
            plain = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "plain.yaml"
            plain.write_text(json.dumps(PLAIN_CONFIG))
            for name, config, model in (
                ("LiteLLM, one plain model", plain, "inferior"),
                ("LiteLLM with litellm_router.py, `router`", LITELLM_CONFIG, "router"),
            ):
                command = litellm_command(args.litellm_python, config)
                port = stack.enter_context(server(command, "/health/liveliness", environment))
                targets.append(Target(name, port, model))

        # 3. Round by round, each in turn
        for target in targets:
            asyncio.run(ask_all(target, prompts[:WARM_UP], concurrency=1))
        for number in range(args.rounds):
            for target in targets:
                measure_round(target, prompts, number, args)
            print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)

    # 4. What that means
    print("\n".join(machine(args.litellm_python)))
    print(
        f"\n{len(asked):,} prompts of {Path(args.prompts).name}, {tokens:.0f} tokens in the median, {folder.name}; "
        f"{args.rounds} rounds; added and requests/s are "
        "those of the middle round, in brackets the lowest and the highest.\n"
    )
    print("\n".join(table(targets, args.concurrency)))


# --- the upstream ----------------------------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """One connection to a server that answers every chat completion at once with the same text."""

    MESSAGE = {"role": "assistant", "content": "The capital of France is Paris. " * 10}
    USAGE = {"prompt_tokens": 20, "completion_tokens": 70, "total_tokens": 90}
    ANSWER = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "fixed", "usage": USAGE}
    BODY = json.dumps(ANSWER | {"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}).encode()
    HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            whole = end + 4 + content_length(self.received[:end])
            if len(self.received) < whole:
                return
            body, self.received = self.received[end + 4 : whole], self.received[whole:]
            if b'"stream":true' in body.replace(b" ", b""):
                self._stream_from(0)
            else:
                self.transport.write(self.HEAD + self.BODY)

    def _stream_from(self, number: int) -> None:
        if number == PIECES:
            self.transport.write(chunk(b"data: [DONE]\n\n") + chunk(b""))
            return
        choice = {"index": 0, "delta": {"role": "assistant", "content": f"word{number} "}, "finish_reason": None}
        head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "fixed"}
        event = b"data: %s\n\n" % json.dumps(head | {"choices": [choice]}).encode()
        self.transport.write((b"" if number else self.STREAM_HEAD) + chunk(event))
        asyncio.get_running_loop().call_later(GAP_SECONDS, self._stream_from, number + 1)


def content_length(head: bytes) -> int:
    """What a request's or a response's head says of its body's length, in bytes; 0 where it says nothing."""
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def chunk(data: bytes) -> bytes:
    """A chunk of a chunked body; the last one is empty."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextmanager
def upstream_server() -> Iterator[int]:
    """The upstream in a process of its own; yields its port."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=serve_upstream, args=(sending,), daemon=True)
    process.start()
    try:
        if not receiving.poll(READY_SECONDS):
            raise InputError("the upstream did not start")
        yield receiving.recv()
    finally:
        process.terminate()
        process.join()


def serve_upstream(port_to) -> None:
    async def serve() -> None:
        listening = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=1024)
        port_to.send(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    runner_of_loops()(serve())


def runner_of_loops() -> Callable:
    """`run` of uvloop, where it is installed, or of asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


# --- the proxies -----------------------------------------------------------------------------------------------------


def environment_for(upstream: int, folder: Path) -> dict[str, str]:
    """The environment of the proxies: both models are the upstream."""
    sides = {}
    for side in ("INFERIOR", "SUPERIOR"):
        url = f"http://127.0.0.1:{upstream}/v1"
        sides |= {f"{side}_MODEL": side.lower(), f"{side}_BASE_URL": url, f"{side}_API_KEY": "none"}
    own = {"ROUTER_MODEL_SAVE_DIR": str(folder), "ROUTER_API_KEY": "", "ROUTER_THRESHOLD": ""}
    # LiteLLM asks the network for its list of prices otherwise, and waits for it
    return dict(os.environ) | sides | own | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}


def endpoint_command(folder: Path) -> list[str]:
    return [sys.executable, str(ENDPOINT), "--model_save_dir", str(folder)]


def litellm_command(python: str, config: Path) -> list[str]:
    """The command that starts LiteLLM's proxy with this configuration.

    Raises:
        InputError: the interpreter's environment has no such proxy.
    """
    program = Path(python).with_name("litellm")
    if not program.exists():
        raise InputError(
            f"no LiteLLM beside {python}; make an environment for it (python3 -m venv litellm-venv) and run: "
            "litellm-venv/bin/python3 -m pip install -r requirements/litellm.txt"
        )
    return [str(program), "--config", str(config), "--host", "127.0.0.1"]


@contextmanager
def server(command: list[str], health: str, environment: dict[str, str]) -> Iterator[int]:
    """A server in a process of its own, from its answer to `health` on; yields its port.

    Raises:
        InputError: it ended, or did not answer in time; its last line is named.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )
        try:
            until = time.monotonic() + READY_SECONDS
            while not answers(f"http://127.0.0.1:{port}{health}"):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                    raise InputError(f"{Path(command[0]).name} did not serve: {last or 'it said nothing'}")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    """Whether this URL is there; a proxy of the environment is not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=5).status == 200
    except (OSError, urllib.error.URLError):
        return False


# --- the client ------------------------------------------------------------------------------------------------------


def measure_round(target: Target, prompts: list[str], number: int, args: argparse.Namespace) -> None:
    """One round of each measurement; every target gets the same prompts in it."""
    start = number * args.requests
    some = list(itertools.islice(itertools.cycle(prompts), start, start + args.requests))
    run = runner_of_loops()
    seconds, _ = run(ask_all(target, some, concurrency=1))
    target.latencies.append(seconds)
    seconds, _ = run(ask_all(target, some[: args.streams], concurrency=1, stream=True))
    target.first_bytes.append(seconds)
    seconds, whole = run(ask_all(target, some * args.repeats, args.concurrency))
    target.rates.append(len(seconds) / whole)


async def ask_all(
    target: Target, prompts: Sequence[str], concurrency: int, stream: bool = False
) -> tuple[list[float], float]:
    """Ask for each prompt, so many at a time, each on a connection that is kept.

    Returns:
        Seconds of each, to the end of the answer or, with `stream`, to the first byte of its body; and of all together.

    Raises:
        InputError: an answer is not a success; the target is named.
    """
    requests = iter([request(target.model, prompt, stream) for prompt in prompts])
    seconds: list[float] = []

    async def ask_in_turn() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            for message in requests:
                seconds.append(await asyncio.wait_for(ask_once(reader, writer, message, stream), ANSWER_SECONDS))
        finally:
            writer.close()

    started = time.perf_counter()
    try:
        await asyncio.gather(*(ask_in_turn() for _ in range(concurrency)))
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        raise InputError(f"{target.name}: {error or type(error).__name__}") from error
    return seconds, time.perf_counter() - started


def request(model: str, prompt: str, stream: bool) -> bytes:
    """The bytes of a chat completion's request."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]} | ({"stream": True} if stream else {})
    raw = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer none\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def ask_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes, stream: bool) -> float:
    """Seconds that one request takes, on an open connection. Raises ValueError where its status is not 200."""
    started = time.perf_counter()
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    first = None
    if b"transfer-encoding: chunked" in head.lower():
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
            first = first or time.perf_counter()
        await reader.readline()
    else:
        await reader.readexactly(content_length(head))
    ended = time.perf_counter()
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise ValueError(f"status {status.decode()}")
    if stream and not first:
        raise ValueError("its answer is no stream")
    return (first if stream else ended) - started


# --- the table -------------------------------------------------------------------------------------------------------


def table(targets: Sequence[Target], concurrency: int) -> list[str]:
    """The figures in Markdown; the first target is what the others are compared with."""
    lines = [
        f"| | median, ms | p99, ms | added in the median, ms | added in the p99, ms | first byte of a stream, ms "
        f"| requests/s at {concurrency} |",
        "|---|---|---|---|---|---|---|",
    ]
    direct = targets[0]
    for target in targets:
        middle, tail = 1e3 * np.percentile(flat(target.latencies), (50, 99))
        added = [
            1e3 * (statistics.median(ours) - statistics.median(its))
            for ours, its in zip(target.latencies, direct.latencies, strict=True)
        ]
        more_tail = tail - 1e3 * np.percentile(flat(direct.latencies), 99)
        first = 1e3 * statistics.median(flat(target.first_bytes))
        cells = [target.name, f"{middle:.2f}", f"{tail:.2f}"]
        cells += (
            ["", ""]
            if target is direct
            else [f"{statistics.median(added):.2f} {spread(added, '.2f')}", f"{more_tail:.2f}"]
        )
        cells += [f"{first:.2f}", f"{statistics.median(target.rates):,.0f} {spread(target.rates, ',.0f')}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    return f"[{min(values):{form}}, {max(values):{form}}]"


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(rounds))


def machine(litellm_python: str | None) -> list[str]:
    """What it ran on."""
    load = f"; load before the end {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    lines = [f"{processor()}, {cores()} cores, {platform.system()}{load}"]
    lines.append(f"endpoint: Python {platform.python_version()}, {versions(PACKAGES)}")
    if litellm_python:
        code = (
            "import platform, sys; from importlib.metadata import version\n"
            "print(', '.join([f'Python {platform.python_version()}', *(f'{p} {version(p)}' for p in sys.argv[1:])]))"
        )
        command = [litellm_python, "-c", code, *LITELLM_PACKAGES]
        lines.append("LiteLLM: " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return lines


def versions(packages: Sequence[str]) -> str:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return ", ".join(f"{package} {version}" for package, version in found.items())


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_save_dir", metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)")
    add("--litellm_python", metavar="PATH", help="the interpreter of an environment with LiteLLM (default: without)")
    add("--prompts", default=str(SAMPLE), metavar="FILE", help="labelled prompts, JSONL (default: the sample)")
    add("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--requests", type=int, default=100, metavar="N", help="a round, one at a time (default: %(default)s)")
    add("--streams", type=int, default=30, metavar="N", help="a round, one at a time (default: %(default)s)")
    add("--concurrency", type=int, default=32, metavar="N", help="for requests a second (default: %(default)s)")
    add("--repeats", type=int, default=4, metavar="N", help="requests a second over this many times --requests "
        "(default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if min(args.rounds, args.requests, args.streams, args.concurrency, args.repeats) < 1:
        parser.error("--rounds, --requests, --streams, --concurrency and --repeats must be 1 or more")
    return args


if __name__ == "__main__":
    run_script(main)
