"""Stage 3: fine-tune a BERT to tell prompts that need the superior model, judge it, and save it as a checkpoint.

Reads   labelled prompts: final-datasets/router_dataset_labelled-*.jsonl, or --train_files
        the labelled MT-Bench questions: final-datasets/mt_bench_questions_labelled.jsonl (for judging only)
Writes  models/<base>-router-finetuning-<timestamp>-save/: weights, tokenizer, router.json, the int8 ONNX file, and the
        evidence: metrics.json, run.json, predictions, plots and a model card (README.md)

Example, on the sample:
    python3 finetuning_model/finetune_bert.py --train_files final-datasets/sample/router_dataset_sample.jsonl
"""

import argparse
import json
import random
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from finetuning_model.evaluation.metrics import Estimate, fit_temperature, label_figures
from finetuning_model.evaluation.run_report import (
    ROUTER,
    calibration,
    draw_plots,
    judge,
    judge_questions,
    markdown_table,
    run_record,
    write_model_card,
    write_predictions,
)
from finetuning_model.labelled_rows import read_questions, read_training_rows, split_rows, without_near_copies
from router_data import InputError, prompt_key, run_script
from router_model import RouterSettings, calibrated

TRAIN_FILES = "final-datasets/router_dataset_labelled-*.jsonl"
SAMPLE = "final-datasets/sample/router_dataset_sample.jsonl"
MANY_ROWS = 10_000  # enough to train every layer, and on the grades as they are
NEIGHBOUR_WEIGHT = 0.3
QUESTIONS_FILE = "final-datasets/mt_bench_questions_labelled.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--train_files",
        nargs="+",
        default=[TRAIN_FILES],
        help=f"labelled JSONL files or globs (default: {TRAIN_FILES})",
    )
    add(
        "--auxiliary_files",
        nargs="+",
        metavar="FILE",
        help="more labelled JSONL files or globs that are only trained on: early stopping, calibration and the test "
        "stay with the rows of --train_files, for example few outcomes of your own beside the sample (default: none)",
    )
    add("--questions_file", default=QUESTIONS_FILE, help=f"labelled MT-Bench questions (default: {QUESTIONS_FILE})")
    add("--hf_model_name", default="bert-base-uncased", help="hub id or local folder (default: bert-base-uncased)")
    add("--output_dir", default="./models", help="where the checkpoint's folder goes (default: ./models)")
    add("--limit", type=int, help="use only this many rows, for a rehearsal (default: all)")
    add("--seed", type=int, default=0, help="of the split, the head and the order of rows (default: 0)")
    add(
        "--num_seeds",
        type=int,
        default=1,
        help="train this many seeds, report mean and spread, keep the best on validation (default: 1)",
    )
    add("--num_train_epochs", type=float, default=1.5, help="passes over the rows (default: 1.5)")
    add("--max_steps", type=int, default=-1, help="stop after this many steps (default: -1, all epochs)")
    add("--learning_rate", type=float, default=2e-4, help="of the top layer (default: 2e-4)")
    add(
        "--layer_decay",
        type=float,
        default=0.9,
        help="each layer's learning rate is that of the one above times this (default: 0.9)",
    )
    add(
        "--freeze_layers",
        type=int,
        help="the embeddings and this many of the lowest layers are not trained (default: half of the layers where "
        "there are fewer than 10,000 rows, else 0)",
    )
    add(
        "--neighbour_weight",
        type=float,
        help="how far each grade is drawn to those of rows with like embeddings, 0 to 1 (default: 0.3 where there are "
        "fewer than 10,000 rows, else 0)",
    )
    add("--weight_decay", type=float, default=0.01, help="(default: 0.01)")
    add("--dropout", type=float, default=0.0, help="in the encoder (default: 0, as PyTorch's dropout is slow on CPUs)")
    add("--per_device_train_batch_size", type=int, default=32, help="rows a step and process (default: 32)")
    add(
        "--max_length",
        type=int,
        default=256,
        help="tokens read of a prompt; of longer ones head and tail (default: 256)",
    )
    add(
        "--early_stopping_patience",
        type=int,
        default=3,
        help="epochs (half epochs, where one has over 300 steps) without a better validation loss (default: 3)",
    )
    add(
        "--bf16",
        choices=["auto", "true", "false"],
        default="auto",
        help="mixed precision (default: auto, where it is faster on this machine)",
    )
    add(
        "--outcome_target",
        choices=["gain", "fail"],
        default="gain",
        help="of rows with two scores and no label: how "
        "much better the superior model did, or whether the inferior one failed (default: gain)",
    )
    add("--resume_from_checkpoint", metavar="FOLDER", help="go on with an interrupted run: its .unfinished folder")
    args = parser.parse_args(argv)
    if args.train_files == [TRAIN_FILES] and not any(Path().glob(TRAIN_FILES)):
        raise InputError(
            f"no labelled prompts at {TRAIN_FILES}; make some: python3 create_dataset/label_prompts.py, "
            f"or use the sample: --train_files {SAMPLE}"
        )
    for name in ("num_seeds", "per_device_train_batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if args.neighbour_weight is not None and not 0 <= args.neighbour_weight <= 1:
        raise InputError("--neighbour_weight must be between 0 and 1")
    return args


def main(argv: list[str] | None = None) -> Path | None:
    args = parse_args(argv)

    # 1. Rows: read, without repeats and without test questions, split by groups of near copies
    rows, data = read_training_rows(args.train_files, args.outcome_target)
    questions = read_questions(args.questions_file)
    asked = {prompt_key(turn) for question in questions for turn in question.turns}
    kept = [row for row in rows if prompt_key(row.prompt) not in asked]
    data["test_questions_dropped"] = len(rows) - len(kept)
    if args.limit and args.limit < len(kept):
        kept = random.Random(args.seed).sample(kept, args.limit)
    train, validation, test = split_rows(kept, args.seed)
    base_rate = float(np.mean([*train.labels, *validation.labels]))
    if args.auxiliary_files:
        more, auxiliary = read_training_rows(args.auxiliary_files, args.outcome_target)
        more = without_near_copies(more, [*validation.prompts, *test.prompts, *asked])
        train.rows += more
        data["files"] += auxiliary["files"]
        data["auxiliary"] = len(more)
    data |= {"train": len(train.rows), "validation": len(validation.rows), "test": len(test.rows)}

    if args.freeze_layers is None and len(train.rows) >= MANY_ROWS:
        args.freeze_layers = 0
    if args.neighbour_weight is None:
        args.neighbour_weight = 0 if len(train.rows) >= MANY_ROWS else NEIGHBOUR_WEIGHT

    # The heavy libraries are loaded only now, when a wrong flag or row has been named
    import torch
    import transformers
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from finetuning_model.evaluation.baselines import baseline_scores, drawn_to_neighbours, frozen_encoder
    from finetuning_model.training import fine_tune, load_base, logit_rows, shift_head

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    state = PartialState(cpu=not torch.cuda.is_available())
    base_name = args.hf_model_name.rstrip("/")
    base_name = base_name if not Path(base_name).exists() else Path(base_name).name
    folder = broadcast_object_list([run_folder(args, base_name)])[0]
    say = print if state.is_main_process else lambda *_: None
    besides = f" ({data['auxiliary']} of them auxiliary)" if args.auxiliary_files else ""
    say(
        f"{data['rows_read']} rows read, {data['repeats_dropped']} repeats and {data['test_questions_dropped']} test "
        f"questions dropped; training on {len(train.rows)}{besides}, validation {len(validation.rows)}, "
        f"test {len(test.rows)}"
    )
    say(f"if interrupted, add: --resume_from_checkpoint {folder}")
    record = run_record(args, data)

    # 2. Training, once a seed; the seed with the lowest validation loss is kept
    runs, best, targets = [], None, None
    for seed in range(args.seed, args.seed + args.num_seeds):
        transformers.set_seed(seed)
        model, tokenizer = load_base(args.hf_model_name, args.dropout, args.freeze_layers)
        args.max_length = min(args.max_length, getattr(model.config, "max_position_embeddings", args.max_length))
        if targets is None:
            embed = frozen_encoder(args.hf_model_name, max_length=min(args.max_length, 128))
            targets = train.targets
            if args.neighbour_weight:
                targets = drawn_to_neighbours(targets, embed(train.prompts), args.neighbour_weight)
        trainer, log = fine_tune(model, tokenizer, train, validation, args, seed, folder, targets)
        if not state.is_main_process:
            continue
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without its bf16 autocast
        logits = logit_rows(model, tokenizer, validation.prompts, args.max_length)
        temperature, shift = fit_temperature(logits[:, 1] - logits[:, 0], validation.labels, base_rate)
        shift = shift_head(model, shift)
        logits[:, 1] += shift
        z = (logits[:, 1] - logits[:, 0]) / temperature
        loss = float(np.mean(np.logaddexp(0, z) - validation.labels * z))
        test_logits = logit_rows(model, tokenizer, test.prompts, args.max_length)
        run = {"seed": seed, "validation_loss": loss, "temperature": temperature, "shift": shift, **log}
        run["test"] = {
            key: metric(calibrated(test_logits, temperature), np.ones((1, len(test.rows))))[0]
            for key, metric in label_figures(test.labels, 0.5).items()
        }
        runs.append(run)
        if best is None or loss < best[0]["validation_loss"]:
            best = (run, model, logits, test_logits)
    if not state.is_main_process:
        return None

    # 3. Calibration and thresholds, from the validation part
    from finetuning_model.choose_threshold import thresholds_for_checkpoint

    run, model, validation_logits, test_logits = best
    settings = RouterSettings(base_model=base_name, max_length=args.max_length, temperature=run["temperature"])
    validation_scores = calibrated(validation_logits, settings.temperature)
    settings.thresholds = thresholds_for_checkpoint(validation_scores, validation.targets)

    # 4. The checkpoint
    from finetuning_model.export_onnx import export_onnx

    write_checkpoint(folder, model, tokenizer, settings)
    write_predictions(folder / "predictions.jsonl", test, calibrated(test_logits, settings.temperature))
    write_predictions(folder / "validation_predictions.jsonl", validation, validation_scores)
    export_onnx(folder, validation.prompts, validation.labels)

    # 5. Judging, on the test part and on the questions that the labeller was not shown
    say("judging beside the baselines ...")
    test_questions = [question for question in questions if not question.in_labelling_prompt]
    question_prompts = [question.prompt for question in test_questions]
    baselines = baseline_scores(train.prompts, train.targets, test.prompts + question_prompts, embed, args.seed)
    question_scores = calibrated(logit_rows(model, tokenizer, question_prompts, args.max_length), settings.temperature)
    scores = {ROUTER: np.concatenate([calibrated(test_logits, settings.temperature), question_scores]), **baselines}
    n = len(test.rows)
    metrics = {
        "test": judge({name: values[:n] for name, values in scores.items()}, test.labels, settings.threshold),
        "calibration": calibration(test_logits, run["shift"], test.labels, settings.temperature),
    }
    if test_questions:
        on_questions = {name: values[n:] for name, values in scores.items()}
        metrics["questions"] = judge_questions(test_questions, on_questions, settings.threshold)
    if args.num_seeds > 1:
        metrics["seeds"] = [{key: each[key] for key in ("seed", "validation_loss", "test")} for each in runs]
        metrics["over_seeds"] = {
            key: {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1))}
            for key in runs[0]["test"]
            for values in [[each["test"][key] for each in runs]]
        }
    record["training"] = runs

    draw_plots(folder, test, test_logits, settings, run)
    for name, content in (("metrics.json", metrics), ("run.json", record)):
        (folder / name).write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
    write_model_card(folder, record, metrics, settings)
    finished = finish(folder)

    # 6. The last words
    print(markdown_table(metrics["test"]))
    rho = metrics.get("questions", {}).get("spearman_with_human_preference", {}).get(ROUTER)
    if rho:  # there is none where every question scores alike
        rho = Estimate(**rho)
        print(f"on {len(test_questions)} MT-Bench questions: Spearman with the human preference {rho}")
    print(f"saved {finished} (metrics with intervals, plots and the model card are in it)")
    print(f"next: python3 inference/run_gradio_model.py --model_save_dir {finished} --hf_model_name {base_name}")
    return finished


def run_folder(args: argparse.Namespace, base_name: str) -> Path:
    """The folder the run works in; it loses `.unfinished` when everything is in it."""
    if args.resume_from_checkpoint:
        folder = Path(args.resume_from_checkpoint)
        if not folder.is_dir():
            raise InputError(
                f"no unfinished run at {folder}; name its .unfinished folder with --resume_from_checkpoint"
            )
        return folder
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return Path(args.output_dir) / f"{base_name.replace('/', '-')}-router-finetuning-{stamp}-save.unfinished"


def finish(folder: Path) -> Path:
    """Delete what only an interrupted run needs, and give the folder its final name."""
    import shutil

    for state in folder.glob("seed-*"):
        shutil.rmtree(state)
    return folder.rename(folder.with_name(folder.name.removesuffix(".unfinished")))


def write_checkpoint(folder: Path, model, tokenizer, settings: RouterSettings) -> None:
    """Weights, config and tokenizer as plain `from_pretrained` reads them, and router.json."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "router.json").write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
