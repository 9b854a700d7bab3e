"""How fast stage 3 trains, beside HF's Trainer with its defaults and with dynamic padding and bf16 alone.

Reads   the sample; a base model (hub id or local folder)
Writes  a table to the terminal, of one epoch over the same rows in the same number of steps: non-padding tokens a
        second, and the AUROC on rows that none of the three has seen, so that speed is not bought with quality

Example:
    python3 benchmarks/training.py --hf_model_name router-venv/all-MiniLM-L6-v2 --steps 32
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from finetuning_model import finetune_bert
from finetuning_model.evaluation.metrics import auroc, bootstrap_weights, estimate
from finetuning_model.labelled_rows import Split, read_training_rows, split_rows
from router_data import run_script

BATCH = 32


def plain_trainer(hf_model_name: str, train: Split, test: Split, max_length: int, padding: str, bf16: bool):
    """A plain Trainer with HF's defaults: dropout as published, every layer trained, random batches, hard labels.

    Returns:
        Non-padding tokens a second, and the superior logit's margin on the test prompts, shape (n,).
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from finetuning_model.training import logit_rows

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(hf_model_name)
    model = AutoModelForSequenceClassification.from_pretrained(hf_model_name, num_labels=2)

    def collate(batch: list[tuple[str, float]]) -> dict:
        prompts, labels = zip(*batch, strict=True)
        encoded = tokenizer(list(prompts), truncation=True, max_length=max_length, padding=padding, return_tensors="pt")
        return {**encoded, "labels": torch.tensor(labels, dtype=torch.long)}

    data = [(prompt, int(label)) for prompt, label in zip(train.prompts, train.labels, strict=True)]
    tokens = sum(min(len(tokenizer(prompt)["input_ids"]), max_length) for prompt, _ in data)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH, bf16=bf16, report_to="none",
            remove_unused_columns=False, save_strategy="no", dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=settings, train_dataset=data, data_collator=collate)
        start = time.perf_counter()
        trainer.train()
        speed = tokens / (time.perf_counter() - start)
    return speed, margins(logit_rows(trainer.model, tokenizer, test.prompts, max_length))


def stage_3(hf_model_name: str, train: Split, test: Split, max_length: int):
    """The same of stage 3's own training with its defaults, but one epoch; one row stands for the validation part."""
    import torch

    from finetuning_model.training import fine_tune, load_base, logit_rows

    torch.manual_seed(0)
    args = finetune_bert.parse_args(
        ["--train_files", "none", "--num_train_epochs", "1", "--max_length", str(max_length)]
    )
    model, tokenizer = load_base(hf_model_name, args.dropout, args.freeze_layers)
    with tempfile.TemporaryDirectory() as folder:
        trainer, log = fine_tune(model, tokenizer, train, Split(train.rows[:1]), args, 0, Path(folder))
    return log["tokens_per_second"], margins(logit_rows(trainer.model, tokenizer, test.prompts, max_length))


def margins(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1] - logits[:, 0]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hf_model_name", default="bert-base-uncased", help="hub id or folder (default: bert-base-uncased)"
    )
    parser.add_argument("--steps", type=int, default=32, help="batches of 32 rows (default: 32)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens read of a prompt (default: 256)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    every_row, _ = read_training_rows([str(ROOT / finetune_bert.SAMPLE)], "gain")
    train, validation, test = split_rows(every_row, 0)
    train = Split(random.Random(0).sample(train.rows, min(args.steps * BATCH, len(train.rows))))
    test = Split(validation.rows + test.rows)

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = args.hf_model_name, train, test, args.max_length
    results = {
        "HF Trainer, defaults (padding to the maximum, fp32)": plain_trainer(*rows, "max_length", False),
        "HF Trainer, dynamic padding and bf16": plain_trainer(*rows, "longest", True),
        "stage 3": stage_3(*rows),
    }
    slowest, _ = next(iter(results.values()))
    draws = bootstrap_weights(len(test.rows))
    print(f"{len(train.rows):,} rows, one epoch in batches of {BATCH}; AUROC on {len(test.rows)} held-out rows\n")
    print("| training | non-padding tokens/s | times the first | AUROC |\n|---|---|---|---|")
    for name, (speed, scores) in results.items():
        quality = estimate(auroc(test.labels), scores, draws)
        print(f"| {name} | {speed:,.0f} | {speed / slowest:.1f} | {quality} |")


if __name__ == "__main__":
    run_script(main)
