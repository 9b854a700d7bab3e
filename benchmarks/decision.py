"""How fast this machine routes: the router beside plain transformers and its pipeline, and beside what is possible.

Reads:  a checkpoint (and, with --bert_base, random weights of bert-base's size made on the spot), the sample's prompts.
Writes: a table in Markdown on the standard output.

The three take turns, in rounds of some calls each; each figure is of the round with the lowest median, so that work of
others on the machine disturbs little. The floor is the time the products take at the int8 rate that is measured first.

    python3 benchmarks/decision.py --model_save_dir models/all-MiniLM-L6-v2-router-finetuning-20261123T211000-save
"""

import argparse
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from router_data import InputError, read_rows, run_script
from router_model import Router, batches_of_like_length, newest_checkpoint, read_config

SAMPLE = ROOT / "final-datasets" / "sample" / "router_dataset_sample.jsonl"
LENGTHS = (16, 32, 128, 512)  # tokens
ROUNDS = 5
SECONDS_PER_ROUND = 0.5
PAUSE = 0.02  # seconds: how far apart the calls of the column "router, apart" are
PERCENTILES = (50, 95, 99)
BATCH_SIZE = 32  # of the two others; they gain nothing from more on a CPU
NAMES = ("router", "transformers", "pipeline")
APART = "router, apart"

LOAD = """
import sys, time
started = time.perf_counter()
sys.path.insert(0, {root!r})
if {name!r} == "router":
    from router_model import Router
    Router.load({folder!r}).score(["warm up"])
else:
    from transformers import pipeline
    pipeline("text-classification", model={folder!r}, device="cpu")("warm up")
seconds = time.perf_counter() - started
try:  # the peak of this process alone; ru_maxrss starts from its parent's
    memory = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
except OSError:
    import resource
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, memory / 1024)
"""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    warnings.simplefilter("ignore")
    if not SAMPLE.exists():
        raise InputError(f"no prompts at {SAMPLE}")
    prompts = [row.prompt for row in read_rows(SAMPLE)]
    folder = Path(args.model_save_dir or newest_checkpoint())

    # 1. The machine
    rate = int8_rate()
    print(f"{processor()}, {cores()} cores; int8 products {rate / 1e9:,.0f} G operations a second\n")

    # 2. The checkpoint, and bert-base's size
    report(folder, prompts, rate, args.num_prompts)
    if args.bert_base:
        with tempfile.TemporaryDirectory() as scratch:
            report(random_bert_base(folder, Path(scratch), prompts), prompts, rate, args.num_prompts // 10)


def report(folder: Path, prompts: list[str], rate: float, num_prompts: int) -> None:
    """Print the tables of one checkpoint."""
    router = Router.load(folder)
    longest = read_config(folder).get("max_position_embeddings", 512)
    router.encoder.max_length = max(router.encoder.max_length, min(512, longest))  # what a longer maximum would cost
    ways = {"router": lambda prompt: router.decide([prompt]), **plain_ways(folder)}
    ways[APART] = ways["router"]
    what = f"onnx {router.settings.onnx.scheme}" if router.backend == "onnx" else "torch, on this machine"
    print(f"### {folder.name} ({what})\n")

    # 1. One prompt
    columns = (*NAMES, APART)
    print("| tokens | " + " | ".join(f"{name} p50 / p95 / p99, ms" for name in columns), end=" ")
    print("| faster | floor, ms | of it |\n|---|" + "---|" * (len(columns) + 3))
    for tokens in LENGTHS:
        if tokens <= longest:
            times = latencies(ways, prompt_of_length(router, prompts, tokens))
            floor = operations(folder, tokens) / rate * 1e3
            cells = " | ".join(" / ".join(f"{value:.1f}" for value in times[name]) for name in columns)
            router_ms = times["router"][0]
            faster = times["transformers"][0] / router_ms
            print(f"| {tokens} | {cells} | {faster:.1f}x | {floor:.2f} | {router_ms / floor:.1f}x |", flush=True)

    # 2. Many prompts
    mixed = [prompts[i % len(prompts)] for i in range(num_prompts)]
    seconds = {"router": timed(lambda: router.score(mixed))}
    for name, way in batched_ways(folder).items():
        seconds[name] = timed(lambda way=way: way(mixed))
    print(f"\n{num_prompts:,} prompts of the sample, in prompts a second: ", end="")
    print(", ".join(f"{name} {num_prompts / seconds[name]:,.0f}" for name in NAMES))

    # 3. Start and memory, in fresh processes
    for name in ("router", "pipeline"):
        load, memory = fresh_process(name, folder)
        print(f"{name}: first answer after {load:.2f} s from the start of Python's imports, {memory:,.0f} MB")
    print()


def latencies(ways: dict[str, Callable], prompt: str) -> dict[str, np.ndarray]:
    """Milliseconds at the percentiles, of the round with the lowest median."""
    best: dict[str, np.ndarray] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            calls, until = [], time.perf_counter() + SECONDS_PER_ROUND
            while time.perf_counter() < until or len(calls) < 5:
                time.sleep(PAUSE if name == APART else 0)
                calls.append(timed(lambda way=way: way(prompt)))
            figures = np.percentile(calls, PERCENTILES) * 1e3
            if name not in best or figures[0] < best[name][0]:
                best[name] = figures
    return best


def plain_ways(folder: Path) -> dict[str, Callable[[str], object]]:
    """One prompt by transformers: tokenizer and model by hand, and its pipeline."""
    tokenizer, model, classify = transformers_of(folder)
    import torch

    @torch.inference_mode()
    def by_hand(prompt: str):
        return model(**tokenizer(prompt, truncation=True, return_tensors="pt")).logits.softmax(-1)

    return {"transformers": by_hand, "pipeline": lambda prompt: classify(prompt, truncation=True)}


def batched_ways(folder: Path) -> dict[str, Callable[[list[str]], object]]:
    """Many prompts by transformers, in batches of like length."""
    tokenizer, model, classify = transformers_of(folder)
    import torch

    @torch.inference_mode()
    def by_hand(prompts: list[str]) -> None:
        lengths = [len(ids) for ids in tokenizer(prompts, truncation=True)["input_ids"]]
        for batch in batches_of_like_length(lengths, 4096):
            for start in range(0, len(batch), BATCH_SIZE):
                texts = [prompts[i] for i in batch[start : start + BATCH_SIZE]]
                model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits.softmax(-1)

    def by_pipeline(prompts: list[str]) -> None:
        classify(sorted(prompts, key=len), batch_size=BATCH_SIZE, truncation=True)

    return {"transformers": by_hand, "pipeline": by_pipeline}


def transformers_of(folder: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = min(tokenizer.model_max_length, 512)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return tokenizer, model, pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def prompt_of_length(router: Router, prompts: Sequence[str], tokens: int) -> str:
    """A prompt of the sample's words that has this many tokens, special ones included."""
    text = " ".join(prompts[:400])
    ends = [end for _, end in router.encoder.tokenizer.encode(text, add_special_tokens=False).offsets]
    for count in range(tokens, 0, -1):
        if (
            len(router.encoder.encode([text[: ends[count]]])[0].ids) <= tokens
            and not router.encoder.encode([text[: ends[count]]])[0].truncated
        ):
            return text[: ends[count]]
    raise InputError(f"no prompt of {tokens} tokens")


def operations(folder: Path, tokens: int) -> float:
    """Multiplications and additions of one forward pass: 2 a weight and token, 4 n^2 d a layer for the attention."""
    config = json.loads((folder / "config.json").read_text())
    weights = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes = {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
        weights += sum(np.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and ".layer" in name)
    return tokens * (2 * weights + 4 * tokens * config["hidden_size"] * config["num_hidden_layers"])


def int8_rate(size: int = 1024) -> float:
    """Operations a second of the best of some int8 products of square matrices, on all cores."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.integers(-127, 128, (size, size), dtype=np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights"], ["outputs"])],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, (size, size))],
        [helper.make_tensor_value_info("outputs", TensorProto.INT32, (size, size))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"inputs": generator.integers(0, 256, (size, size), dtype=np.uint8)}
    return 2 * size**3 / min(timed(lambda: session.run(None, inputs)) for _ in range(200))


def random_bert_base(like: Path, scratch: Path, prompts: list[str]) -> Path:
    """A checkpoint of bert-base's size with random weights, and the tokenizer of this one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from finetuning_model.export_onnx import export_onnx
    from router_data import LABELS

    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    folder = scratch / "random weights of bert-base's size"
    BertForSequenceClassification(
        BertConfig(id2label=names, label2id={v: k for k, v in names.items()})
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(like / name, folder / name)
    (folder / "router.json").write_text("{}")
    some = prompts[::40]
    export_onnx(folder, some, [1] * len(some), say=lambda line: None)  # of random scores an AUROC would say nothing
    return folder


def fresh_process(name: str, folder: Path) -> tuple[float, float]:
    """Seconds to the first answer and peak memory in MB, the better of three processes."""
    code = LOAD.format(root=str(ROOT), name=name, folder=str(folder))
    runs = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    return min(tuple(map(float, run.split())) for run in runs)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_save_dir", metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)"
    )
    parser.add_argument("--bert_base", action="store_true", help="also measure random weights of bert-base's size")
    parser.add_argument(
        "--num_prompts",
        type=int,
        default=5000,
        metavar="N",
        help="prompts to score for the throughput, bert-base a tenth (default: 5000)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
