"""How fast this machine routes: the router beside plain transformers and its pipeline, and beside what is possible.

The three take turns, in rounds of some calls each, and each figure is of the round with the lowest median, so that
other work on the machine disturbs little. The floor is the time that the model's products take at the int8 rate that
is measured first.

Reads   a checkpoint (and, with --bert_base, random weights of bert-base's size made on the spot), the sample's prompts
Writes  tables in Markdown on stdout

Example:
    python3 benchmarks/decision.py --model_save_dir models/all-MiniLM-L6-v2-router-finetuning-20261123T211000-save
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.int8_floor import int8_rate, operations
from benchmarks.machine import describe, timed
from finetuning_model.evaluation.markdown import table
from router_data import LABELS, SAMPLE_FILE, InputError, LabelledPrompt, program_parser, read_rows, run_script
from router_model import BATCH_TOKENS, Router, RouterSettings, batches_of_like_length, newest_checkpoint, read_config

LENGTHS = (16, 32, 128, 512)  # tokens
ROUNDS = 5
SECONDS_PER_ROUND = 0.5
PAUSE = 0.02  # seconds between the calls of the column "router, apart": the other cores sleep meanwhile
PERCENTILES = (50, 95, 99)
BATCH_SIZE = 32  # of the two others, which gain nothing from more on a CPU
APART = "router, apart"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the checkpoint, and bert-base's size where asked."""
    args = parse_args(argv)
    warnings.simplefilter("ignore")
    if args.num_prompts < 10:
        raise InputError("--num_prompts must be 10 or more")
    folder = args.model_save_dir or newest_checkpoint()
    prompts = [row.prompt for row in read_rows(ROOT / SAMPLE_FILE, LabelledPrompt)]

    # 1. The machine
    rate = int8_rate()
    print(describe("onnxruntime", "torch", "transformers", "tokenizers"))
    print(f"int8 products: {rate / 1e9:,.0f} G operations a second\n")

    # 2. The checkpoint, and bert-base's size
    report(folder, prompts, rate, args.num_prompts)
    if args.bert_base:
        with tempfile.TemporaryDirectory() as scratch:
            report(random_bert_base(folder, Path(scratch), prompts), prompts, rate, args.num_prompts // 10)


def report(folder: Path, prompts: list[str], rate: float, num_prompts: int) -> None:
    """Print the tables of one checkpoint."""
    router = Router.load(folder)
    longest = min(512, read_config(folder).get("max_position_embeddings", 512))
    router.encoder.max_length = max(router.encoder.max_length, longest)  # what a longer maximum would cost
    one, many = transformers_ways(folder)
    one = {"router": router.decide} | one | {APART: router.decide}
    many = {"router": router.score} | many
    scheme = router.settings.onnx.scheme if router.settings.onnx else "fp32"
    print(f"### {folder.name} ({router.backend}, {scheme})\n")

    # 1. One prompt
    rows = []
    for tokens in (length for length in LENGTHS if length <= longest):
        times = latencies(one, prompt_of_length(router, prompts, tokens))
        floor = operations(folder, tokens) / rate * 1e3
        cells = [" / ".join(f"{value:.1f}" for value in times[name]) for name in one]
        faster = times["transformers"][0] / times["router"][0]
        cells += [f"{faster:.1f}x", f"{floor:.2f}", f"{times['router'][0] / floor:.1f}"]
        rows.append([f"{tokens}", *cells])
    print("Milliseconds: p50 / p95 / p99.\n")
    print(table(["tokens", *one, "faster than transformers", "floor, ms", "times the floor"], rows), flush=True)

    # 2. Many prompts; start and memory in fresh processes
    mixed = [prompts[i % len(prompts)] for i in range(num_prompts)]
    rates = {name: f"{num_prompts / timed(partial(way, mixed)):,.0f}" for name, way in many.items()}
    ours, its = (fresh_process(name, folder) for name in ("router", "pipeline"))
    rows = [
        [f"{num_prompts:,} prompts of the sample, prompts a second", *(rates[name] for name in many)],
        ["from the first import to the first answer, s", f"{ours[0]:.2f}", "", f"{its[0]:.2f}"],
        ["peak memory of that process, MB", f"{ours[1]:.0f}", "", f"{its[1]:.0f}"],
    ]
    print("\n" + table(["", *many], rows) + "\n")


def latencies(ways: dict[str, Callable[[str], object]], prompt: str) -> dict[str, np.ndarray]:
    """Milliseconds at the percentiles, of the round with the lowest median."""
    best: dict[str, np.ndarray] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            calls: list[float] = []
            until = time.perf_counter() + SECONDS_PER_ROUND
            while time.perf_counter() < until or len(calls) < 5:
                time.sleep(PAUSE if name == APART else 0)
                calls.append(timed(partial(way, prompt)))
            figures = np.percentile(calls, PERCENTILES) * 1e3
            if name not in best or figures[0] < best[name][0]:
                best[name] = figures
    return best


def transformers_ways(folder: Path) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Ways to score one prompt and to score many (in batches of like length): a model by hand, and the pipeline."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.model_max_length = min(tokenizer.model_max_length, 512)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")

    @torch.inference_mode()
    def by_hand(prompts: str | list[str]) -> None:
        model(**tokenizer(prompts, truncation=True, padding=True, return_tensors="pt")).logits.softmax(-1)

    def batches_by_hand(prompts: list[str]) -> None:
        lengths = [len(ids) for ids in tokenizer(prompts, truncation=True)["input_ids"]]
        for batch in batches_of_like_length(lengths, BATCH_TOKENS):
            for start in range(0, len(batch), BATCH_SIZE):
                by_hand([prompts[i] for i in batch[start : start + BATCH_SIZE]])

    one = {"transformers": by_hand, "pipeline": lambda prompt: classify(prompt, truncation=True)}
    many = {
        "transformers": batches_by_hand,
        "pipeline": lambda prompts: classify(sorted(prompts, key=len), batch_size=BATCH_SIZE, truncation=True),
    }
    return one, many


def prompt_of_length(router: Router, prompts: Sequence[str], tokens: int) -> str:
    """A text of the sample's words that has this many tokens, special ones included."""
    text = " ".join(prompts[:400])
    ends = [end for _, end in router.encoder.tokenizer.encode(text, add_special_tokens=False).offsets]
    for count in range(tokens, 0, -1):
        encoded = router.encoder.encode(text[: ends[count]])[0]
        if len(encoded.ids) <= tokens and not encoded.truncated:
            return text[: ends[count]]
    raise InputError(f"no prompt of {tokens} tokens")


def random_bert_base(like: Path, scratch: Path, prompts: list[str]) -> Path:
    """A checkpoint of bert-base's size with random weights, and the tokenizer of this one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from finetuning_model.export_onnx import export_onnx

    torch.manual_seed(0)
    config = BertConfig(
        id2label=dict(enumerate(map(str, LABELS))), label2id={str(label): i for i, label in enumerate(LABELS)}
    )
    folder = scratch / "random weights of bert-base's size"
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(like / name, folder / name)
    RouterSettings().save(folder)
    some = prompts[::40]
    export_onnx(folder, some, [1] * len(some), say=lambda line: None)  # one class: random scores have no AUROC to lose
    return folder


def fresh_process(name: str, folder: Path) -> tuple[float, float]:
    """Seconds to the first answer and peak memory in MB, the better of three processes."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "first_answer.py"), str(folder), name]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    return min((float(seconds), float(megabytes)) for seconds, megabytes in runs)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)")
    add("--bert_base", action="store_true", help="also measure random weights of bert-base's size")
    add("--num_prompts", type=int, default=5000, metavar="N",
        help="prompts to score for the throughput, a tenth for bert-base's size (default: %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
