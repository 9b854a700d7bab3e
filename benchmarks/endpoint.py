"""What the endpoint costs: latency added to the upstream, requests a second, first byte of a stream; beside LiteLLM's.

A server in a process of its own plays both models. It is asked directly, through inference/serve_openai_api.py, and,
where --litellm_python names an interpreter that has LiteLLM, through LiteLLM's proxy with one plain model and with
inference/litellm_router.py. All are started as their users start them, and take turns in rounds, with the same client
and the same prompts, so that other work on the machine disturbs all of them alike. Client, upstream and proxy share
the machine's cores: its figures say what a proxy costs beside the others, not what it serves on a machine of its own.

Reads   a checkpoint, and prompts (the sample's)
Writes  a table in Markdown on stdout

Example:
    python3 benchmarks/endpoint.py --litellm_python litellm-venv/bin/python3
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.chat_client import ask_all
from benchmarks.machine import describe, server
from finetuning_model.evaluation.markdown import table
from router_data import SAMPLE_FILE, InputError, LabelledPrompt, program_parser, read_rows, run_script
from router_model import Router, newest_checkpoint

WARM_UP_REQUESTS = 20


@dataclass
class Target:
    """What is asked, and how long its answers took: seconds and rates, round by round.

    Attributes:
        name: for the table.
        port: on 127.0.0.1.
        model: the model asked for.
        latencies: seconds of each request, one at a time.
        first_bytes: seconds to the first byte of each stream's body.
        rates: requests a second at --concurrency.
    """

    name: str
    port: int
    model: str
    latencies: list[list[float]] = field(default_factory=list)
    first_bytes: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Start the servers, measure them in turns, print the table."""
    args = parse_args(argv)

    # 1. The prompts, none asked twice, and how long they are
    folder = (args.model_save_dir or newest_checkpoint()).resolve()
    prompts = list(dict.fromkeys(row.prompt for row in read_rows(args.prompts, LabelledPrompt)))
    random.Random(0).shuffle(prompts)
    per_round = args.requests * (1 + args.repeats) + args.streams
    if len(prompts) < WARM_UP_REQUESTS + args.rounds * per_round:
        raise InputError(f"{args.prompts} has too few prompts for {args.rounds} rounds of {per_round}")
    tokens = statistics.median(len(row.ids) for row in Router.load(folder).encoder.encode(prompts))

    # 2. The servers
    with ExitStack() as stack:
        upstream = [sys.executable, str(ROOT / "benchmarks" / "upstream.py"), "--port", "{port}"]
        targets = [Target("upstream, directly", stack.enter_context(server(upstream, "/")), "inferior")]
        environment = environment_for(targets[0].port, folder)
        command = [sys.executable, str(ROOT / "inference" / "serve_openai_api.py"), "--port", "{port}"]
        port = stack.enter_context(server(command + ["--model_save_dir", str(folder)], "/health", environment))
        targets.append(Target("endpoint, `router`", port, "router"))
        targets.append(Target("endpoint, `router`, the same prompts again", port, "router"))
        targets.append(Target("endpoint, `inferior` (nothing scored)", port, "inferior"))
        if args.litellm_python:
            targets += litellm_targets(stack, args.litellm_python, environment)

        # 3. Round by round, each in turn
        import uvloop

        for target in targets:
            uvloop.run(ask_all(target.port, target.model, prompts[:WARM_UP_REQUESTS], concurrency=1))
        for number in range(args.rounds):
            start = WARM_UP_REQUESTS + number * per_round
            for target in targets:
                uvloop.run(measure_round(target, prompts[start : start + per_round], args))
            print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)

    # 4. What that means
    print(describe("starlette", "uvicorn", "aiohttp", "onnxruntime", "tokenizers"))
    print(f"{folder.name}; prompts of {Path(args.prompts).name}, {tokens:.0f} tokens at the median;")
    print(f"{args.rounds} rounds: added and requests/s are the median round's, with the lowest and the highest.\n")
    header = ["", "median, ms", "p99, ms", "added at the median, ms", "first byte of a stream, ms"]
    rows = [figures(target, targets[0]) for target in targets]
    print(table([*header, f"requests/s at {args.concurrency}"], rows))


def environment_for(upstream: int, folder: Path) -> dict[str, str]:
    """The environment of the proxies: both models are the upstream."""
    own = {"ROUTER_MODEL_SAVE_DIR": str(folder), "ROUTER_API_KEY": "", "NO_PROXY": "127.0.0.1"}
    for tier in ("INFERIOR", "SUPERIOR"):
        url = f"http://127.0.0.1:{upstream}/v1"
        own |= {f"{tier}_MODEL": tier.lower(), f"{tier}_BASE_URL": url, f"{tier}_API_KEY": "none"}
    own["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else LiteLLM waits for its list of prices from the network
    return dict(os.environ) | own


def litellm_targets(stack: ExitStack, python: str, environment: dict[str, str]) -> list[Target]:
    """LiteLLM's proxy twice: with one plain model, and with the router in it.

    Raises:
        InputError: the interpreter's environment has no such proxy.
    """
    program = Path(python).with_name("litellm")
    if not program.exists():
        raise InputError(f"no LiteLLM beside {python}; make an environment for it: make litellm")
    settings = {"model": "os.environ/INFERIOR_MODEL", "custom_llm_provider": "openai"}
    settings |= {"api_base": "os.environ/INFERIOR_BASE_URL", "api_key": "os.environ/INFERIOR_API_KEY"}
    plain = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "plain.yaml"
    plain.write_text(json.dumps({"model_list": [{"model_name": "inferior", "litellm_params": settings}]}))
    targets = []
    for name, config, model in (
        ("LiteLLM, one plain model", plain, "inferior"),
        ("LiteLLM with litellm_router.py, `router`", ROOT / "inference" / "litellm_config.yaml", "router"),
    ):
        command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", "{port}"]
        port = stack.enter_context(server(command, "/health/liveliness", environment))
        targets.append(Target(name, port, model))
    return targets


async def measure_round(target: Target, prompts: list[str], args: argparse.Namespace) -> None:
    """One round of each measurement; every target gets the same prompts in it."""
    streams_end = args.requests + args.streams
    one_by_one, streams, many = prompts[: args.requests], prompts[args.requests : streams_end], prompts[streams_end:]
    server = target.port, target.model
    target.latencies.append((await ask_all(*server, one_by_one, concurrency=1))[0])
    target.first_bytes.append((await ask_all(*server, streams, concurrency=1, stream=True))[0])
    seconds, whole = await ask_all(*server, many, args.concurrency)
    target.rates.append(len(seconds) / whole)


def figures(target: Target, direct: Target) -> list[str]:
    """A target's row of the table; what it adds is against the direct one, round by round."""
    median, p99 = 1e3 * np.percentile(np.concatenate(target.latencies), (50, 99))
    medians = [np.median(seconds) for seconds in target.latencies]
    added_ms = 1e3 * (np.array(medians) - [np.median(seconds) for seconds in direct.latencies])
    added = "" if target is direct else with_range(added_ms.tolist(), ".2f")
    first_byte = 1e3 * np.median(np.concatenate(target.first_bytes))
    return [target.name, f"{median:.2f}", f"{p99:.2f}", added, f"{first_byte:.2f}", with_range(target.rates, ",.0f")]


def with_range(values: Sequence[float], form: str) -> str:
    """The median, in brackets the lowest and the highest."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)")
    add("--litellm_python", metavar="PATH", help="the interpreter of an environment with LiteLLM (default: without)")
    add("--prompts", default=str(ROOT / SAMPLE_FILE), metavar="FILE", help="labelled prompts (default: the sample)")
    add("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--requests", type=int, default=100, metavar="N", help="a round, one at a time (default: %(default)s)")
    add("--streams", type=int, default=30, metavar="N", help="a round, one at a time (default: %(default)s)")
    add("--concurrency", type=int, default=32, metavar="N", help="for requests a second (default: %(default)s)")
    add("--repeats", type=int, default=4, metavar="N",
        help="requests a second over this many times --requests (default: %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
