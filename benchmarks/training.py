"""How fast stage 3 trains, beside HF's Trainer with its defaults and with dynamic padding and bf16 alone.

Each trains one epoch over the same rows in the same number of steps. The AUROC on rows that none of the three has seen
shows that speed is not bought with quality.

Reads   the sample; a base model (hub id or local folder)
Writes  a table in Markdown on stdout: tokens a second without padding, and the AUROC with its interval

Example:
    python3 benchmarks/training.py --hf_model_name router-venv/all-MiniLM-L6-v2 --steps 32
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe
from finetuning_model import finetune_bert
from finetuning_model.evaluation.markdown import table
from finetuning_model.evaluation.metrics import auroc, bootstrap_weights, estimate
from finetuning_model.labelled_rows import Split, read_training_data
from router_data import SAMPLE_FILE, program_parser, run_script
from router_model import Router, RouterSettings

BATCH_SIZE = 32


def main(argv: Sequence[str] | None = None) -> None:
    """Train three times and compare."""
    args = parse_args(argv)
    data = read_training_data([str(ROOT / SAMPLE_FILE)], "none", seed=0)
    train = Split(random.Random(0).sample(data.train.rows, min(args.steps * BATCH_SIZE, len(data.train.rows))))
    test = Split(data.validation.rows + data.test.rows)

    finetune_bert.start_process()
    runs = {
        "HF Trainer, defaults (padding to the maximum, fp32)": plain_trainer(args, train, "max_length", bf16=False),
        "HF Trainer, dynamic padding and bf16": plain_trainer(args, train, "longest", bf16=True),
        "stage 3": stage_3(args, train),
    }
    slowest = next(iter(runs.values()))[0]
    draws = bootstrap_weights(len(test.rows))
    rows = []
    for name, (speed, model, tokenizer) in runs.items():
        scores = Router.from_model(model, tokenizer, RouterSettings(max_length=args.max_length)).score(test.prompts)
        quality = estimate(auroc(test.labels), scores, draws)
        rows.append([name, f"{speed:,.0f}", f"{speed / slowest:.1f}", str(quality)])
    print(describe("torch", "transformers"))
    print(
        f"{len(train.rows):,} rows, one epoch in batches of {BATCH_SIZE}; AUROC on {len(test.rows):,} held-out rows\n"
    )
    print(table(["training", "tokens/s without padding", "times the first", "AUROC"], rows))


def plain_trainer(args: argparse.Namespace, train: Split, padding: str, bf16: bool):
    """A plain Trainer with HF's defaults: dropout as published, every layer trained, random batches, hard labels.

    Returns:
        Tokens a second without padding, the model and its tokenizer.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.hf_model_name, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.hf_model_name, num_labels=2, trust_remote_code=False
    )

    def collate(batch: list[tuple[str, float]]) -> dict:
        prompts, labels = zip(*batch, strict=True)
        encoded = tokenizer(
            list(prompts), truncation=True, max_length=args.max_length, padding=padding, return_tensors="pt"
        )
        return {**encoded, "labels": torch.tensor(labels, dtype=torch.long)}

    data = [(prompt, int(label)) for prompt, label in zip(train.prompts, train.labels, strict=True)]
    tokens = sum(min(len(tokenizer(prompt)["input_ids"]), args.max_length) for prompt, _ in data)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE, bf16=bf16, report_to="none",
            remove_unused_columns=False, save_strategy="no", dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=settings, train_dataset=data, data_collator=collate)
        started = time.perf_counter()
        trainer.train()
        return tokens / (time.perf_counter() - started), trainer.model, tokenizer


def stage_3(args: argparse.Namespace, train: Split):
    """The same of stage 3's own training, with its defaults but for one epoch and bare prompts.

    One row stands for the validation part. Frames would make the prompts longer than those of the others.
    """
    import torch

    from finetuning_model.encoders import load_tokenizer
    from finetuning_model.training import Recipe, fine_tune

    torch.manual_seed(0)
    flags = ["--hf_model_name", args.hf_model_name, "--num_train_epochs", "1", "--frame_share", "0"]
    flags += ["--train_files", str(ROOT / SAMPLE_FILE), "--max_length", str(args.max_length)]
    recipe = Recipe.resolve(finetune_bert.parse_args(flags), len(train.rows))
    tokenizer = load_tokenizer(recipe.base)
    with tempfile.TemporaryDirectory() as folder:
        run = fine_tune(recipe, tokenizer, train, Split(train.rows[:1]), 0, Path(folder))
    return run.log["tokens_per_second"], run.model, tokenizer


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--hf_model_name", default="bert-base-uncased", metavar="NAME", help="hub id or folder (default: %(default)s)")
    add("--steps", type=int, default=32, metavar="N", help=f"batches of {BATCH_SIZE} rows (default: %(default)s)")
    add("--max_length", type=int, default=256, metavar="N", help="tokens read of a prompt (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
