"""Fine-tuning itself: an encoder with a fresh head, or a router; HF's Trainer on soft labels, in changing frames."""

import argparse
import json
import math
import os
import random
import time
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainingArguments

from finetuning_model import defaults
from finetuning_model.encoders import (
    is_head,
    layers_above,
    load_config,
    load_weights,
    readable_tokens,
    without_dropout,
)
from finetuning_model.frames import Frames
from finetuning_model.labelled_rows import Split
from finetuning_model.lineage import ParentRouter, parent_router
from request_text import request_text
from router_data import LABELS, InputError, read_json_object
from router_model import REQUEST_FINDER_FILE, PromptEncoder, RouterSettings, pad_rows

LONG_EPOCH = 500  # steps; a longer epoch is evaluated, and can be resumed, half way too
FRAME_ATTENTION = 0.1  # how much attention to frames counts beside the soft labels
LOCATABLE = 8  # characters of a prompt that is looked for in its frame
SHORT_PROMPT = 24  # tokens, special ones included
LOSSES_PER_EVALUATION = 20  # points of the training loss in the plot
WEIGHT_DECAY = 0.01
ON_CPU = not torch.cuda.is_available()


@dataclass(frozen=True)
class Recipe:
    """How a router is trained, every default resolved: what run.json records is what was done.

    Attributes:
        base: hub id or local folder of the encoder.
        base_name: what checkpoints call it.
        continued_from: the folder of the router whose weights training starts from; None: a fresh head on the encoder.
        seeds: one training each; the best on validation is kept.
        num_train_epochs, max_steps: how long (max_steps -1: all epochs).
        learning_rate: of the top layer; each layer below has `layer_decay` times that of the one above, and the head
            `head_speed` times that of the top layer.
        smooth_labels: whether half of a row's soft label is what the rows like it say.
        like_prompts: prompts of the sample that the rows label besides.
        freeze_layers: the embeddings and this many of the lowest layers are not trained.
        frame_share: share of the training prompts that stand in a frame, drawn anew each epoch.
        frames_file: where the frames come from; None without any.
        find_requests: whether a second model learns to find the request in its frame.
        per_device_train_batch_size: rows a step and process.
        max_length: tokens read of a prompt.
        finder_length: tokens read of a text to find the request in it; None where nothing finds it.
        early_stopping_patience: evaluations without a better validation loss; 0 keeps the last weights, not the best.
        bf16: whether training multiplies in bfloat16; fp16: in float16, on GPUs without bfloat16.
    """

    base: str
    base_name: str
    continued_from: str | None
    seeds: tuple[int, ...]
    num_train_epochs: float
    max_steps: int
    learning_rate: float
    layer_decay: float
    head_speed: float
    smooth_labels: bool
    like_prompts: int
    freeze_layers: int
    frame_share: float
    frames_file: str | None
    find_requests: bool
    per_device_train_batch_size: int
    max_length: int
    finder_length: int | None
    early_stopping_patience: int
    bf16: bool
    fp16: bool

    @classmethod
    def resolve(cls, args: argparse.Namespace, train_rows: int) -> "Recipe":
        """The recipe that the flags mean for this many rows, on this encoder and this machine.

        Raises:
            InputError: the encoder can't be had, or has fewer layers than are to be frozen.
        """
        name = args.hf_model_name.rstrip("/")
        parent = parent_router(name)
        like_prompts = args.like_prompts if parent and train_rows < defaults.FEW_ROWS else 0
        default = defaults.FEW_OUTCOMES if like_prompts else defaults.ROUTER if parent else defaults.ENCODER
        config = load_config(name)

        def given(name: str, value: Any) -> Any:
            return value if getattr(args, name) is None else getattr(args, name)

        depth = config.num_hidden_layers
        freeze_layers = given("freeze_layers", depth // 2 if train_rows < defaults.MANY_ROWS else 0)
        if not 0 <= freeze_layers <= depth:
            raise InputError(f"{name} has {depth} layers; --freeze_layers can't be {freeze_layers}")
        base = encoder_of(parent) if parent else name
        max_length = given("max_length", parent.settings.max_length if parent else defaults.MAX_LENGTH)
        finds_requests = args.find_requests or bool(parent and (parent.folder / REQUEST_FINDER_FILE).exists())
        gpu_bf16 = not ON_CPU and torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(
            base=base,
            base_name=parent.encoder_name if parent else Path(base).name if Path(base).exists() else base,
            continued_from=str(parent.folder) if parent else None,
            seeds=tuple(range(args.seed, args.seed + args.num_seeds)),
            num_train_epochs=given("num_train_epochs", default.num_train_epochs),
            max_steps=args.max_steps,
            learning_rate=given("learning_rate", default.learning_rate),
            layer_decay=args.layer_decay,
            head_speed=default.head_speed,
            smooth_labels=bool(parent and args.like_prompts and train_rows <= defaults.SMOOTHED_ROWS),
            like_prompts=like_prompts,
            freeze_layers=freeze_layers,
            frame_share=args.frame_share,
            frames_file=str(args.frames) if args.frame_share else None,
            find_requests=args.find_requests,
            per_device_train_batch_size=args.per_device_train_batch_size,
            max_length=min(max_length, readable_tokens(config, max_length)),
            finder_length=min(2 * max_length, readable_tokens(config, max_length)) if finds_requests else None,
            early_stopping_patience=given("early_stopping_patience", default.early_stopping_patience),
            bf16=cpu_gains_from_bf16() if ON_CPU else gpu_bf16,
            fp16=not ON_CPU and not gpu_bf16,
        )

    @property
    def start(self) -> str:
        """Where weights and tokenizer come from."""
        return self.continued_from or self.base

    def read_frames(self) -> Frames | None:
        """The frames to train on, or None."""
        return Frames.read(self.frames_file) if self.frames_file else None

    def frame(self, prompts: Sequence[str]) -> list[str]:
        """Held-out prompts as training sees its own: the same share of them in frames, the same ones each time."""
        frames = self.read_frames()
        return list(prompts) if frames is None else frames.wrap_share(prompts, self.frame_share, "held out")


@dataclass
class TrainedModel:
    """What one seed gave.

    Attributes:
        seed: its number.
        model: the fine-tuned classifier.
        log: evaluations, seconds, steps and tokens per second, for run.json and the plot.
    """

    seed: int
    model: Any
    log: dict[str, Any]


def encoder_of(parent: ParentRouter) -> str:
    """The encoder that a router came from, where it can be had; else the router's own, which has learnt since."""
    try:
        load_config(parent.encoder)
    except InputError:
        return str(parent.folder)
    return parent.encoder


def load_classifier(recipe: Recipe):
    """The encoder with a fresh two-label head, or the router to go on from; no dropout, its lowest layers frozen.

    A router's temperature goes into its head, so that training starts from the scores that it serves. Attention is
    plain matrix products: the loss reads it, and on a CPU in bf16 the backward pass of PyTorch's fused attention takes
    up to two fifths of a step.

    Raises:
        InputError: it can't be had.
    """
    config = without_dropout(load_config(recipe.start))
    config.num_labels = 2
    config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
    model = load_weights(recipe.start, config, fresh_head=not recipe.continued_from, attn_implementation="eager")
    if recipe.continued_from:
        scale_logits(model, 1 / RouterSettings.load(Path(recipe.continued_from)).temperature)
    trained = model.config.num_hidden_layers - recipe.freeze_layers
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name, model) or layers_above(name, model) < trained)
    return model


def cpu_gains_from_bf16() -> bool:
    """Whether this processor has instructions for products of bf16 matrices, which fp32's are slower than."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class FramedPrompts(torch.utils.data.Dataset):
    """Prompts as token ids with their soft labels; a share of them stands in frames, drawn anew each epoch.

    Short prompts come bare as well, whether they stand in a frame or not: a few words say little in a frame, and much
    of what people type is short. It costs hardly any tokens.

    Args:
        frames: what to draw from; None leaves every prompt bare.
        share: 0..1.
    """

    def __init__(
        self, prompts: Sequence[str], soft_labels: np.ndarray, encoder: PromptEncoder, frames: Frames | None,
        share: float, seed: int,
    ) -> None:  # fmt: skip
        self.prompts, self.encoder = prompts, encoder
        self.frames, self.share, self.seed = frames, share, seed
        self.ids = self.bare = [row.ids for row in encoder.encode(prompts)]
        self.inside = [np.ones(len(ids), dtype=np.float32) for ids in self.ids]
        self.short = [i for i, ids in enumerate(self.ids) if len(ids) <= SHORT_PROMPT] if frames else []
        self.soft_labels = np.concatenate([soft_labels, soft_labels[self.short]])
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the frames of this epoch; without frames nothing changes."""
        if self.frames is not None:
            framed = self.frames.wrap_share(self.prompts, self.share, f"{self.seed} {epoch}")
            rows = [
                (ids, np.ones(len(ids), dtype=np.float32)) if text == prompt else locate(self.encoder, text, prompt)
                for text, prompt, ids in zip(framed, self.prompts, self.bare, strict=True)
            ]
            rows += [(self.bare[i], np.ones(len(self.bare[i]), dtype=np.float32)) for i in self.short]
            self.ids, self.inside = map(list, zip(*rows, strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"input_ids": self.ids[i], "inside": self.inside[i], "labels": float(self.soft_labels[i])}


def locate(encoder: PromptEncoder, framed: str, prompt: str) -> tuple[list[int], np.ndarray]:
    """The token ids of a prompt in a frame, and 1 for each token of the prompt, 0 for each of the frame.

    Special tokens count as the frame's, or attention would rest on them. Where the prompt does not stand in the frame
    word for word, or is so short that the frame may hold it as well, every token counts as the prompt's.
    """
    text, ids, offsets = encoder.with_offsets(framed)
    forms = (prompt, json.dumps(prompt, ensure_ascii=False)[1:-1], request_text(prompt))
    found = ((at, at + len(form)) for form in forms if len(form) >= LOCATABLE and (at := text.find(form)) >= 0)
    start, end = next(found, (0, len(text)))
    bare = end - start == len(text)
    inside = [bare or (start < right and left < end and left < right) for left, right in offsets]
    return ids, np.array(inside, dtype=np.float32)


class LengthGroupedSampler:
    """A sampler that shuffles rows, sorts them by length within windows of 50 batches, and shuffles the batches.

    Batches hold rows of like length, with hardly any padding, and still come in a new random order each epoch. HF's
    own (`train_sampling_strategy="group_by_length"`) measures the rows once, but frames change their lengths each
    epoch.
    """

    def __init__(self, dataset: FramedPrompts, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer's word for the next pass: new frames, new order."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        lengths = [len(row) for row in self.dataset.ids]
        draw = random.Random(f"{self.seed} {self.epoch}")
        order = draw.sample(range(len(lengths)), len(lengths))
        window = 50 * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            rows = sorted(order[start : start + window], key=lengths.__getitem__)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        draw.shuffle(batches)
        batches.sort(key=lambda batch: len(batch) < self.batch_size)  # a short batch elsewhere would shift all others
        return iter([row for batch in batches for row in batch])


class RouterTrainer(Trainer):
    """HF's Trainer on soft labels, with layer-wise learning rates.

    Args:
        recipe: how to train.
        prior: mean soft label of the training rows, 0..1.
    """

    def __init__(self, recipe: Recipe, prior: float, **rest: Any) -> None:
        self.recipe, self.prior = recipe, prior
        super().__init__(**rest)

    def _get_train_sampler(self, train_dataset=None):
        batch_size = self.recipe.per_device_train_batch_size * self.args.world_size
        return LengthGroupedSampler(self.train_dataset, batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropy with the soft labels, and the share of attention that goes to frames.

        Both labels weigh the same in all; calibration gives the prior back. The last layer's first token is what is
        classified: of its attention the loss adds -log of the share inside the prompt, which is 0 without a frame.
        """
        soft_label, inside = inputs.pop("labels"), inputs.pop("inside")
        guided = model.training and self.recipe.frames_file is not None
        outputs = model(**inputs, output_attentions=True) if guided else model(**inputs)
        logits = outputs.logits.float()
        weight = soft_label * 0.5 / self.prior + (1 - soft_label) * 0.5 / (1 - self.prior)
        margin = logits[:, 1] - logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, soft_label, weight=weight)
        if guided and outputs.attentions:
            attention = outputs.attentions[-1][:, :, 0].float().mean(1)  # of the heads
            loss = loss - FRAME_ATTENTION * (attention * inside).sum(1).clamp(min=1e-4).log().mean()
        return (loss, {"logits": logits}) if return_outputs else loss

    def create_optimizer(self, model=None):
        """AdamW on `parameter_groups`."""
        if self.optimizer is None:
            recipe = self.recipe
            groups = parameter_groups(self.model, recipe.learning_rate, recipe.layer_decay, recipe.head_speed)
            self.optimizer = torch.optim.AdamW(groups, fused=True, betas=(0.9, 0.999), eps=1e-8)
        return self.optimizer


class Progress(ProgressCallback):
    """One bar for the whole training, with the last validation loss."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the validation loss."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "eval_loss" in logs:
            self.training_bar.set_postfix_str(f"epoch {logs['epoch']:.1f}, validation loss {logs['eval_loss']:.4f}")


def fine_tune(recipe: Recipe, tokenizer, train: Split, validation: Split, seed: int, folder: Path) -> TrainedModel:
    """Train one seed; the model keeps the weights with the lowest validation loss, or the last ones without patience.

    Args:
        train: the rows; a share of their prompts stands in frames.
        validation: what chooses the weights, its prompts in the same share of frames.
        folder: where an interrupted run finds its state, in `seed-<seed>/`.
    """
    model = load_classifier(recipe)
    encoder = PromptEncoder(tokenizer.backend_tokenizer, recipe.max_length)
    frames = recipe.read_frames()
    rows = FramedPrompts(train.prompts, train.soft_labels, encoder, frames, recipe.frame_share, seed)
    held_out = FramedPrompts(recipe.frame(validation.prompts), validation.soft_labels, encoder, None, 0, seed)
    state_folder = folder / f"seed-{seed}"
    trainer = RouterTrainer(
        recipe,
        prior=float(np.clip(rows.soft_labels.mean(), 0.01, 0.99)),
        model=model,
        args=training_arguments(recipe, state_folder, len(rows), seed),
        data_collator=Collator(tokenizer.pad_token_id or 0),
        train_dataset=rows,
        eval_dataset=sorted((held_out[i] for i in range(len(held_out))), key=lambda row: len(row["input_ids"])),
        callbacks=[EarlyStoppingCallback(recipe.early_stopping_patience)] if recipe.early_stopping_patience else [],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    started = time.perf_counter()
    state = newest_trainer_state(state_folder)
    trainer.train(resume_from_checkpoint=str(state) if state else None)
    seconds = time.perf_counter() - started
    tokens = sum(map(len, rows.ids)) * trainer.state.epoch
    log = {
        "seed": seed,
        "history": [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry],
        "seconds": seconds,
        "tokens_per_second": None if state else tokens / seconds,
        "steps": trainer.state.global_step,
    }
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without its autocast
    return TrainedModel(seed, model, log)


@dataclass(frozen=True)
class Collator:
    """Rows of token ids with soft labels -> a padded batch."""

    pad_id: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """As the Trainer asks for a batch."""
        ids, mask = pad_rows([row["input_ids"] for row in rows], self.pad_id)
        inside = np.zeros(ids.shape, dtype=np.float32)
        for i, row in enumerate(rows):
            inside[i, : len(row["inside"])] = row["inside"]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "inside": torch.from_numpy(inside),
            "labels": torch.tensor([row["labels"] for row in rows], dtype=torch.float32),
        }


def training_arguments(recipe: Recipe, folder: Path, rows: int, seed: int) -> TrainingArguments:
    """HF's arguments: evaluate and save once an epoch, twice where one is long; keep the best."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    steps_per_epoch = math.ceil(rows / (recipe.per_device_train_batch_size * world_size))
    evaluate_every = math.ceil(steps_per_epoch / 2) if steps_per_epoch > LONG_EPOCH else steps_per_epoch
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=0.1,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=2 * recipe.per_device_train_batch_size,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every,
        save_total_limit=1,
        load_best_model_at_end=recipe.early_stopping_patience > 0,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="steps",
        logging_steps=max(1, evaluate_every // LOSSES_PER_EVALUATION),
        bf16=recipe.bf16,
        fp16=recipe.fp16,
        use_cpu=ON_CPU,
        ddp_backend="gloo" if ON_CPU and world_size > 1 else None,
        dataloader_pin_memory=not ON_CPU,
        remove_unused_columns=False,
        seed=seed,
        report_to="none",
        disable_tqdm=False,
    )


def parameter_groups(model, learning_rate: float, layer_decay: float, head_speed: float) -> list[dict]:
    """Optimizer groups: the head learns fastest, each layer below by `layer_decay` slower (Howard and Ruder 2018)."""
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            speed = head_speed if is_head(name, model) else layer_decay ** layers_above(name, model)
            groups[speed, parameter.ndim >= 2].append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * speed, "weight_decay": WEIGHT_DECAY if is_matrix else 0.0}
        for (speed, is_matrix), parameters in groups.items()
    ]


def add_logit_bias(model, bias: float) -> float:
    """Add `bias` to the superior logit of every prompt, in the head; returns what was added (0 for a head without)."""
    head = last_linear(model)
    if head is None or head.bias is None:
        return 0.0
    with torch.no_grad():
        head.bias[1] += bias
    return bias


def scale_logits(model, factor: float) -> None:
    """Multiply both logits of every prompt, in the head; a head of another kind than a linear layer stays as it is."""
    head = last_linear(model)
    with torch.no_grad():
        for parameter in head.parameters() if head else ():
            parameter.mul_(factor)


def last_linear(model) -> torch.nn.Linear | None:
    """The layer that gives the two logits; None where it is of another kind."""
    heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 2]
    return heads[-1] if heads else None


def newest_trainer_state(folder: Path) -> Path | None:
    """Where an interrupted training goes on: its newest state that was written whole; None: from the start."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for state in states:
        fault = state_fault(state)
        if fault is None:
            return state
        warnings.warn(f"{state} is not whole ({fault}), so it is passed over", stacklevel=2)
    return None


def state_fault(state: Path) -> str | None:
    """What is wrong with a state of the Trainer that was being written when the run or the disk ended; None: nothing.

    A state whose best weights so far are torn is of no use either.
    """
    try:
        record = read_json_object(state / "trainer_state.json")
        for name in ("optimizer.pt", "scheduler.pt"):
            zipfile.ZipFile(state / name).close()  # its table of contents is at its end
        best = state.parent / Path(record.get("best_model_checkpoint") or state).name
        for folder in {state, best}:
            safe_open(folder / "model.safetensors", "np").__enter__()  # its length is in its header
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile, SafetensorError) as error:
        return str(error)
    return None
