"""A second, small model that finds the request in what an application sends, so that the router scores it alone.

It is the router's encoder, trained to tell a request's tokens from those of its frame. Every layer learns: with the
lower half frozen, or as a layer on the router, it finds far fewer (docs/lab_notes.md).
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, ProgressCallback, Trainer, TrainingArguments

from finetuning_model.encoders import load_config, named_faults, without_dropout
from finetuning_model.export_onnx import silenced
from finetuning_model.frames import MORE_FRAMES, TRAINING_FRAMES, Frames
from finetuning_model.labelled_rows import Split
from finetuning_model.training import ON_CPU, Collator, FramedPrompts, LengthGroupedSampler, Progress, Recipe
from router_model import REQUEST_FINDER_FILE, OnnxModel, PromptEncoder

FRAMED_SHARE = 0.85  # of the prompts
EVENNESS = 400  # characters: long frames are drawn more often than for the router, since they hide a request best
LEARNING_RATE = 2e-4
HEAD_LEARNING_RATE = 1e-3
MAX_CHANGED = 0.02  # share of the tokens that int8 may put on the other side
ROWS_FOR_RANGES = 128


class FinderTrainer(Trainer):
    """HF's Trainer on the tokens of requests and frames."""

    def _get_train_sampler(self, train_dataset=None):
        return LengthGroupedSampler(self.train_dataset, self.args.train_batch_size * self.args.world_size, 0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropy, token by token; a long text counts as the square root of its length."""
        inputs.pop("labels")
        of_request, mask = inputs.pop("inside"), inputs["attention_mask"].float()
        outputs = model(**inputs)
        log_odds = outputs.logits.float().squeeze(-1)
        each = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, of_request, reduction="none")
        weight = mask / mask.sum(1, keepdim=True).sqrt()
        loss = (each * weight).sum() / weight.sum()
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None):
        """AdamW, the head faster than the encoder."""
        if self.optimizer is None:
            named = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
            head = [each for name, each in named if name.startswith("classifier.")]
            rest = [each for name, each in named if not name.startswith("classifier.")]
            groups = [{"params": rest, "lr": LEARNING_RATE}, {"params": head, "lr": HEAD_LEARNING_RATE}]
            self.optimizer = torch.optim.AdamW(groups, fused=True, weight_decay=0.01)
        return self.optimizer


def train_request_finder(recipe: Recipe, tokenizer: Any, train: Split, folder: Path) -> Any:
    """Fine-tune the encoder to find the training prompts in their frames, one epoch.

    Args:
        folder: where the Trainer may write.
    """
    with named_faults(recipe.base):
        config = without_dropout(load_config(recipe.base))
        config.num_labels = 1
        model = AutoModelForTokenClassification.from_pretrained(
            recipe.base,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            attn_implementation="eager",
        )
    model.get_input_embeddings().requires_grad_(False)
    encoder = PromptEncoder(tokenizer.backend_tokenizer, recipe.max_length)
    prompts = train.prompts
    more = [MORE_FRAMES] if recipe.frames_file == str(TRAINING_FRAMES) else []
    frames = replace(Frames.read(str(recipe.frames_file), *more), evenness=EVENNESS)
    rows = FramedPrompts(prompts, np.zeros(len(prompts)), encoder, frames, FRAMED_SHARE, seed=0)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".request-finder-") as scratch:
        trainer = FinderTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=1,
                max_steps=recipe.max_steps,
                learning_rate=LEARNING_RATE,
                warmup_steps=0.1,
                per_device_train_batch_size=recipe.per_device_train_batch_size,
                save_strategy="no",
                logging_strategy="no",
                bf16=recipe.bf16,
                fp16=recipe.fp16,
                use_cpu=ON_CPU,
                ddp_backend="gloo" if ON_CPU and int(os.environ.get("WORLD_SIZE", 1)) > 1 else None,
                dataloader_pin_memory=not ON_CPU,
                remove_unused_columns=False,
                seed=0,
                report_to="none",
                disable_tqdm=False,
            ),
            data_collator=Collator(tokenizer.pad_token_id or 0),
            train_dataset=rows,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def export_request_finder(model: Any, recipe: Recipe, tokenizer: Any, train: Split, folder: Path) -> OnnxModel:
    """Write the model as ONNX into the checkpoint's folder: int8 where it finds the same tokens, else fp32."""
    from finetuning_model.onnx_graph import export, rewrite_for_speed, write_int8, write_smoothed

    encoder = PromptEncoder(tokenizer.backend_tokenizer, recipe.max_length)
    rows = [row.ids for row in encoder.encode(recipe.frame(train.prompts[:ROWS_FOR_RANGES]))]
    model.eval().float().cpu()
    with silenced(), tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
        plain, smoothed, small = (Path(scratch) / name for name in ("plain.onnx", "smoothed.onnx", "int8.onnx"))
        rewrite_for_speed(model)
        export(model, plain)
        write_smoothed(plain, smoothed, rows)
        write_int8(smoothed, small, [])
        exact, rounded = (np.concatenate(OnnxModel(path).outputs(rows), axis=1) > 0 for path in (plain, small))
        shutil.move(small if np.mean(exact != rounded) <= MAX_CHANGED else plain, folder / REQUEST_FINDER_FILE)
    return OnnxModel(folder / REQUEST_FINDER_FILE)
