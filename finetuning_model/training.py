"""Fine-tuning itself: the encoder with a fresh head, HF's Trainer on soft targets, and the logits that come out."""

import argparse
import math
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from finetuning_model.labelled_rows import Split
from router_data import LABELS, InputError
from router_model import BATCH_TOKENS, PromptEncoder, batches_of_like_length

LONG_EPOCH = 300  # steps; a longer one is evaluated, and can be resumed, half way too


def load_base(hf_model_name: str, dropout: float, freeze_layers: int | None = 0):
    """The encoder with a fresh two-label head, and its tokenizer.

    The embeddings and the lowest `freeze_layers` layers (None: half of them) are not trained. On a CPU attention is
    plain matrix products: in bf16 the backward pass of PyTorch's fused one can take two fifths of a step (RESULTS.md).

    Raises:
        InputError: it can't be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    try:
        config = AutoConfig.from_pretrained(hf_model_name)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "mlp_dropout"):
            if hasattr(config, name):
                setattr(config, name, dropout)
        config.num_labels = 2
        config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
        tokenizer = AutoTokenizer.from_pretrained(hf_model_name)
        model = AutoModelForSequenceClassification.from_pretrained(hf_model_name, config=config, **attention)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model {hf_model_name} can't be had ({str(error).splitlines()[0]}); name a model of the hub "
            "(a gated one needs HF_TOKEN) or a local folder with --hf_model_name"
        ) from error
    depth = model.config.num_hidden_layers
    frozen = depth // 2 if freeze_layers is None else freeze_layers
    if frozen > depth:
        raise InputError(f"{hf_model_name} has {depth} layers; --freeze_layers can't be {frozen}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_below_top(name, model) < depth - frozen)
    return model, tokenizer


def layer_below_top(name: str, model) -> int:
    """How many layers lie above a parameter's: 0 for the top layer and the head, the depth for the embeddings."""
    depth = model.config.num_hidden_layers
    if "embeddings" in name:
        return depth
    number = next((int(part) for part in name.split(".") if part.isdigit()), None)
    return 0 if number is None or not name.startswith(model.base_model_prefix) else depth - 1 - number


def bf16_pays() -> bool:
    """Whether this processor multiplies bf16 matrices clearly faster than fp32 ones (not all that can, do)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(1024, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.float32) > 1.3 * seconds(torch.bfloat16)


class LengthWindows:
    """A sampler that shuffles rows, sorts them by length within windows of 50 batches, and shuffles the batches.

    So batches hold rows of like length, with hardly any padding, and still come in a new random order each epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        draw = random.Random(f"{self.seed} {self.epoch}")
        order = draw.sample(range(len(self.lengths)), len(self.lengths))
        window = 50 * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            rows = sorted(order[start : start + window], key=self.lengths.__getitem__)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        draw.shuffle(batches)
        batches.sort(
            key=lambda batch: len(batch) < self.batch_size
        )  # a short batch comes last, or it would shift others
        return iter([row for batch in batches for row in batch])


def fine_tune(
    model,
    tokenizer,
    train: Split,
    validation: Split,
    args: argparse.Namespace,
    seed: int,
    folder: Path,
    targets: np.ndarray | None = None,
):
    """Train on soft targets; the model keeps the weights with the lowest validation loss.

    Args:
        targets: what to train on instead of the grades of the training rows, shape (n,).

    Returns:
        The Trainer, and the training log: its `log_history` with tokens per second (padding not counted).
    """
    import torch
    from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainingArguments

    encode = PromptEncoder(tokenizer.backend_tokenizer, args.max_length)
    targets = train.targets if targets is None else targets
    prior = float(np.clip(targets.mean(), 0.01, 0.99))

    def dataset(prompts: list[str], targets: np.ndarray) -> list[dict]:
        rows = zip(encode(prompts), targets, strict=True)
        return [{"input_ids": row.ids, "labels": target} for row, target in rows]

    def tokens_of(row: dict) -> int:
        return len(row["input_ids"])

    def collate(rows: list[dict]) -> dict:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": torch.tensor([row["labels"] for row in rows], dtype=torch.float32),
        }

    class RouterTrainer(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            size = args.per_device_train_batch_size * self.args.world_size
            return LengthWindows(list(map(tokens_of, self.train_dataset)), size, seed)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            target = inputs.pop("labels")
            outputs = model(**inputs)
            logits = outputs.logits.float()
            # Both labels weigh the same in all; calibration gives the prior back.
            weight = target * 0.5 / prior + (1 - target) * 0.5 / (1 - prior)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[:, 1] - logits[:, 0], target, weight=weight
            )
            return (loss, {"logits": logits}) if return_outputs else loss

        def create_optimizer(self, model=None):
            if self.optimizer is None:
                self.optimizer = torch.optim.AdamW(
                    layer_groups(self.model, args), fused=True, betas=(0.9, 0.999), eps=1e-8
                )
            return self.optimizer

    class Progress(ProgressCallback):
        def on_log(self, arguments, state, control, logs=None, **kwargs):
            if state.is_world_process_zero and self.training_bar is not None and logs and "eval_loss" in logs:
                self.training_bar.set_postfix_str(f"epoch {logs['epoch']:.1f}, validation loss {logs['eval_loss']:.4f}")

    rows = dataset(train.prompts, targets)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    steps_per_epoch = math.ceil(len(rows) / (args.per_device_train_batch_size * world_size))
    evaluate_every = math.ceil(steps_per_epoch / 2) if steps_per_epoch > LONG_EPOCH else steps_per_epoch
    on_cpu = not torch.cuda.is_available()
    trainer = RouterTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / f"seed-{seed}"),
            num_train_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            warmup_steps=0.1,
            per_device_train_batch_size=args.per_device_train_batch_size,
            per_device_eval_batch_size=2 * args.per_device_train_batch_size,
            eval_strategy="steps",
            eval_steps=evaluate_every,
            save_strategy="steps",
            save_steps=evaluate_every,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="steps",
            logging_steps=evaluate_every,
            bf16=bf16_pays() if args.bf16 == "auto" else args.bf16 == "true",
            use_cpu=on_cpu,
            ddp_backend="gloo" if on_cpu and world_size > 1 else None,
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=False,
            seed=seed,
            report_to="none",
            disable_tqdm=False,
        ),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=sorted(dataset(validation.prompts, validation.targets), key=tokens_of),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=args.early_stopping_patience)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    start = time.perf_counter()
    checkpoint = newest_trainer_state(folder / f"seed-{seed}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - start
    tokens = sum(map(tokens_of, rows)) * trainer.state.epoch
    log = {
        "history": [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry],
        "seconds": seconds,
        "tokens_per_second": None if checkpoint else tokens / seconds,
        "steps": trainer.state.global_step,
        "bf16": trainer.args.bf16,
    }
    return trainer, log


def layer_groups(model, args: argparse.Namespace) -> list[dict]:
    """Optimizer groups: the head learns fastest, each layer below by `layer_decay` slower (Howard and Ruder 2018)."""
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layer_below_top(name, model), parameter.ndim >= 2].append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * args.layer_decay**below,
            "weight_decay": args.weight_decay if is_matrix else 0.0,
        }
        for (below, is_matrix), parameters in groups.items()
    ]


def shift_head(model, shift: float) -> float:
    """Add `shift` to the superior logit of every prompt, in the head's bias; returns what was added (0 without one)."""
    import torch

    heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 2]
    if not heads or heads[-1].bias is None:
        return 0.0
    with torch.no_grad():
        heads[-1].bias[1] += shift
    return shift


def newest_trainer_state(folder: Path) -> Path | None:
    """Where an interrupted training goes on."""
    states = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(states, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def logit_rows(model, tokenizer, prompts: list[str], max_length: int) -> np.ndarray:
    """The model's logits for prompts in fp32, shape (n, 2), in their order."""
    import torch

    model = model.eval().float()
    rows = [torch.tensor(row.ids) for row in PromptEncoder(tokenizer.backend_tokenizer, max_length)(prompts)]
    pad = torch.nn.utils.rnn.pad_sequence
    logits = np.empty((len(rows), 2))
    with torch.inference_mode():
        for batch in batches_of_like_length([len(row) for row in rows], BATCH_TOKENS):
            ids = pad([rows[i] for i in batch], batch_first=True, padding_value=tokenizer.pad_token_id or 0)
            mask = pad([torch.ones_like(rows[i]) for i in batch], batch_first=True)
            outputs = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            logits[batch] = outputs.logits.float().cpu().numpy()
    return logits
