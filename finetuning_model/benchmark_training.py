"""How fast stage 3 trains, beside HF's Trainer with its defaults and with dynamic padding and bf16 alone.

Reads   the sample; a base model (hub id or local folder)
Writes  a table to the terminal: non-padding tokens a second over the same rows and steps

Example:
    python3 finetuning_model/benchmark_training.py --hf_model_name router-venv/all-MiniLM-L6-v2 --steps 8
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetuning_model import finetune_bert
from finetuning_model.training_rows import Split
from router_data import expand_paths, read_rows, run_script

BATCH = 32


def hf_tokens_per_second(hf_model_name: str, rows: Split, max_length: int, padding: str, bf16: bool) -> float:
    """Non-padding tokens a second of a plain Trainer: dropout as published, every layer trained, random batches."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(hf_model_name)
    model = AutoModelForSequenceClassification.from_pretrained(hf_model_name, num_labels=2)

    def collate(batch: list[tuple[str, float]]) -> dict:
        prompts, labels = zip(*batch, strict=True)
        encoded = tokenizer(list(prompts), truncation=True, max_length=max_length, padding=padding, return_tensors="pt")
        return {**encoded, "labels": torch.tensor(labels, dtype=torch.long)}

    data = [(prompt, int(label)) for prompt, label in zip(rows.prompts, rows.labels, strict=True)]
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
        return tokens / (time.perf_counter() - start)


def our_tokens_per_second(hf_model_name: str, rows: Split, max_length: int) -> float:
    """The same of stage 3's own training, with its defaults; one row stands for the validation part."""
    from finetuning_model.training import fine_tune, load_base

    args = finetune_bert.parse_args(
        ["--train_files", "none", "--num_train_epochs", "1", "--max_length", str(max_length)]
    )
    model, tokenizer = load_base(hf_model_name, args.dropout, args.freeze_layers)
    with tempfile.TemporaryDirectory() as folder:
        _, log = fine_tune(model, tokenizer, rows, Split(rows.rows[:1]), args, 0, Path(folder))
    return log["tokens_per_second"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hf_model_name", default="bert-base-uncased", help="hub id or folder (default: bert-base-uncased)"
    )
    parser.add_argument("--steps", type=int, default=8, help="batches of 32 rows (default: 8)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens read of a prompt (default: 256)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    every_row = [row for path in expand_paths([ROOT / finetune_bert.SAMPLE]) for row in read_rows(path)]
    rows = Split(random.Random(0).sample(every_row, args.steps * BATCH))

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    speeds = {
        "HF Trainer, defaults (padding to the maximum, fp32)": hf_tokens_per_second(
            args.hf_model_name, rows, args.max_length, "max_length", False
        ),
        "HF Trainer, dynamic padding and bf16": hf_tokens_per_second(
            args.hf_model_name, rows, args.max_length, "longest", True
        ),
        "stage 3": our_tokens_per_second(args.hf_model_name, rows, args.max_length),
    }
    slowest = next(iter(speeds.values()))
    print("| training | non-padding tokens/s | times the first |\n|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.0f} | {speed / slowest:.1f} |")


if __name__ == "__main__":
    run_script(main)
