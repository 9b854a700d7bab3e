"""Stage 3: fine-tune a BERT to tell prompts that need the superior model, judge it, and save it as a checkpoint.

Reads   labelled prompts: final-datasets/router_dataset_labelled-*.jsonl, or --train_files
        the labelled MT-Bench questions: final-datasets/mt_bench_questions_labelled.jsonl (for judging only)
Writes  models/<base>-router-finetuning-<timestamp>-save/: weights, tokenizer, router.json, the int8 ONNX files of the
        router and of what finds a request in an application's frame, and the evidence: metrics.json, run.json,
        tradeoff.json, predictions, plots and a model card (README.md)

With --hf_model_name models/<a router>-save training goes on from that router's weights instead of a fresh head: what
few outcomes of your own are for. Rows that the router was trained on are never judged on.

Example, on the sample, and then on outcomes of your own:
    python3 finetuning_model/finetune_bert.py --train_files final-datasets/sample/router_dataset_sample.jsonl
    python3 finetuning_model/finetune_bert.py --train_files my_outcomes.jsonl --hf_model_name models/<a router>-save
"""

import argparse
import ctypes
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from finetuning_model.defaults import (
    ENCODER,
    FEW_OUTCOMES,
    FEW_ROWS,
    LIKE_PROMPTS,
    MANY_ROWS,
    MAX_LENGTH,
    ROUTER,
    SMOOTHED_ROWS,
)
from finetuning_model.frames import JUDGING_FRAMES, TRAINING_FRAMES, Frames
from finetuning_model.labelled_rows import HELD_OUT, Split, TrainingData, read_training_data
from finetuning_model.lineage import ParentRouter, parent_router, trained_prompts
from router_data import (
    LABELLED_FILES_GLOB,
    QUESTIONS_FILE,
    SAMPLE_FILE,
    InputError,
    program_parser,
    run_script,
    timestamp,
)
from router_model import REQUEST_FINDER_FILE, OnnxModel, Router, RouterSettings

if TYPE_CHECKING:
    from accelerate import PartialState

    from finetuning_model.training import Recipe, TrainedModel

UNFINISHED = ".unfinished"
FRAME_SHARE = 0.5
EMBEDDED_TOKENS = 64  # of a prompt, from both ends, for the baselines on embeddings: half the time of 128
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
ENOUGH_TO_CALIBRATE = 100  # rows: the share that a threshold sends is then known to 10 percentage points either way


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; HF's names for what HF names."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("--train_files", nargs="+", default=[LABELLED_FILES_GLOB], metavar="FILE",
        help=f"labelled JSONL files or globs (default: {LABELLED_FILES_GLOB})")
    add("--auxiliary_files", nargs="+", default=[], metavar="FILE",
        help="more labelled files that are only trained on: early stopping, calibration and the test stay with the "
        "rows of --train_files, for example few outcomes of your own beside the sample (default: none)")
    add("--unlabelled_files", nargs="+", default=[], metavar="FILE",
        help="files of your own prompts without labels, such as a decision log: --like_prompts are drawn from these, "
        "not from the sample (default: none)")
    add("--questions_file", type=Path, default=QUESTIONS_FILE,
        help="labelled MT-Bench questions (default: %(default)s)")
    add("--limit", type=int, help="use only this many rows, for a rehearsal (default: all)")
    add("--output_dir", type=Path, default=Path("./models"),
        help="where the checkpoint's folder goes (default: ./models)")
    add = parser.add_argument_group("frames: what applications wrap around a request").add_argument
    add("--frames", type=Path, default=TRAINING_FRAMES, metavar="FILE",
        help="frames to train on, in the form that finetuning_model/frames.py describes (default: the packaged ones)")
    add("--frame_share", type=float, default=FRAME_SHARE,
        help="share of the training prompts that stand in a frame, 0..1 (default: %(default)s)")
    add("--find_requests", action="store_true",
        help="train a second model too, which finds the request in its frame, to be scored alone: fewer decisions "
        "change in frames, long texts take up to twice the time (a router that training goes on from keeps its own)")
    add("--judging_frames", type=Path, default=JUDGING_FRAMES, metavar="FILE",
        help="frames to judge on; none of them may be trained on (default: the packaged ones)")
    add = parser.add_argument_group("training").add_argument
    add("--hf_model_name", default="bert-base-uncased",
        help="hub id or local folder of an encoder, or a router's folder to go on from (default: %(default)s)")
    add("--like_prompts", type=int, default=LIKE_PROMPTS, metavar="N",
        help=f"where a router goes on with fewer than {FEW_ROWS:,} rows it learns what they say of so many prompts of "
        f"--unlabelled_files, else of the sample, too; each of up to {SMOOTHED_ROWS:,} rows counts half, those like it "
        "the other half; 0: the rows alone, as they are (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the split, the head and the order of rows (default: %(default)s)")
    add("--num_seeds", type=int, default=1,
        help="train this many seeds, report mean and spread, keep the best on validation (default: %(default)s)")
    add("--num_train_epochs", type=float,
        help=f"passes over the rows (default: {ENCODER.num_train_epochs}; from a router {ROUTER.num_train_epochs}, or "
        f"{FEW_OUTCOMES.num_train_epochs} where it learns like prompts too)")
    add("--max_steps", type=int, default=-1, help="stop after this many steps (default: -1, all epochs)")
    add("--learning_rate", type=float,
        help=f"of the top layer (default: {ENCODER.learning_rate}; from a router {ROUTER.learning_rate})")
    add("--layer_decay", type=float, default=0.9,
        help="each layer's learning rate is that of the one above times this (default: %(default)s)")
    add("--freeze_layers", type=int,
        help="the embeddings and this many of the lowest layers are not trained (default: half of the layers where "
        f"there are fewer than {MANY_ROWS:,} rows, else 0)")
    add("--per_device_train_batch_size", type=int, default=32, help="rows a step and process (default: %(default)s)")
    add("--max_length", type=int,
        help=f"tokens read of a prompt; of longer ones head and tail (default: {MAX_LENGTH}; from a router its own)")
    add("--early_stopping_patience", type=int,
        help="epochs (half epochs, where one has over 400 steps) without a better validation loss; 0: never stop, and "
        f"keep the last weights (default: {ENCODER.early_stopping_patience}; from a router "
        f"{ROUTER.early_stopping_patience})")
    add("--resume_from_checkpoint", type=Path, metavar="DIR",
        help=f"go on with an interrupted run: its {UNFINISHED} folder")
    # fmt: on
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can't work, before anything slow is loaded.

    Raises:
        InputError: names the flag and the remedy.
    """
    if args.train_files == [LABELLED_FILES_GLOB] and not any(Path().glob(LABELLED_FILES_GLOB)):
        raise InputError(
            f"no labelled prompts at {LABELLED_FILES_GLOB}; make some: python3 create_dataset/label_prompts.py, "
            f"or use the sample: --train_files {SAMPLE_FILE}"
        )
    for name in ("num_seeds", "per_device_train_batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if args.like_prompts < 0:
        raise InputError("--like_prompts must not be negative")
    if args.unlabelled_files and not args.like_prompts:
        raise InputError("--unlabelled_files are what --like_prompts are drawn from; give a number above 0")
    if not 0 <= args.frame_share <= 1:
        raise InputError("--frame_share must be between 0 and 1")
    if args.resume_from_checkpoint and not args.resume_from_checkpoint.is_dir():
        raise InputError(
            f"no unfinished run at {args.resume_from_checkpoint}; name its {UNFINISHED} folder with "
            "--resume_from_checkpoint"
        )
    if args.find_requests and not args.frame_share:
        raise InputError("--find_requests learns from frames; give a --frame_share above 0")
    if args.frame_share:
        Frames.read(args.frames)
    Frames.read(args.judging_frames)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Read, train, calibrate, save, judge; returns the checkpoint's folder (None in all processes but the main one)."""
    args = parse_args(argv)

    # 1. Rows, and how to train on them
    parent, data = read_inputs(args)
    from finetuning_model.encoders import load_tokenizer, rehearse
    from finetuning_model.evaluation import run_report
    from finetuning_model.evaluation.baselines import frozen_encoder
    from finetuning_model.evaluation.tradeoff import thresholds_for_checkpoint
    from finetuning_model.export_onnx import ROWS_TO_COMPARE, export_onnx
    from finetuning_model.like_prompts import rows_to_learn
    from finetuning_model.training import Recipe, load_classifier

    process = start_process()
    recipe = Recipe.resolve(args, len(data.train.rows))
    folder = run_folder(args, recipe)
    record = run_report.run_record(args, recipe, data)
    if process.is_main_process:
        print(data.describe())
        if parent:
            print(f"going on from {parent.folder}, a router made from {recipe.base_name}")
        if recipe.smooth_labels:
            print("half of each row's label is what the rows like it say")
        if recipe.like_prompts:
            source = " ".join(args.unlabelled_files) or "the sample"
            print(f"learning also from up to {recipe.like_prompts:,} prompts of {source}, as these rows label them")
        elif args.unlabelled_files:
            print(f"--unlabelled_files are not needed: {len(data.train.rows):,} rows teach enough by themselves")
        print(f"if interrupted, add: --resume_from_checkpoint {folder}", flush=True)

    # 2. What finds the request in a frame; then training, once a seed, of which that with the lowest loss is kept
    tokenizer = load_tokenizer(recipe.start)
    rehearse(recipe.start, load_classifier(recipe), tokenizer, recipe.max_length)
    finder = request_finder(recipe, tokenizer, data, folder, process)
    embed = frozen_encoder(recipe.base, max_length=min(recipe.max_length, EMBEDDED_TOKENS))
    earlier = Router.load(parent.folder) if parent else None
    lesson = data.train
    if earlier and recipe.smooth_labels:
        lesson = rows_to_learn(data, recipe.like_prompts, earlier, embed, args.seed)
    runs = [train_one_seed(recipe, tokenizer, lesson, data, seed, folder, finder) for seed in recipe.seeds]
    if not process.is_main_process:
        return None
    best = min(runs, key=lambda run: run.log["validation_loss"])

    # 3. The checkpoint, and the router as it will serve, from the fast ONNX file
    save_checkpoint(folder, best.model, tokenizer, calibrated_settings(recipe, best, parent))
    compared = Split([*data.validation.rows, *data.train.rows][: max(len(data.validation.rows), ROWS_TO_COMPARE)])
    export_onnx(folder, compared.prompts, compared.labels.tolist())
    router = Router.load(folder)
    validation_scores, test_scores = router.score(data.validation.prompts), router.score(data.test.prompts)

    # 4. What each threshold brings, on the validation part
    router.settings.thresholds = thresholds_for_checkpoint(validation_scores, data.validation.rows)
    router.settings.save(folder)
    run_report.write_tradeoff(folder, data.validation.rows, validation_scores)
    run_report.write_predictions(folder, router, data, validation_scores, test_scores)

    # 5. The judgement, on rows that chose nothing: the test part, the questions, and both in frames
    print("judging beside the baselines ...", flush=True)
    metrics = run_report.judge_checkpoint(router, test_scores, data, embed, args.judging_frames, runs, earlier)
    run_report.draw_plots(folder, router, test_scores, data, best.log)
    run_report.write_evidence(folder, record, metrics, runs)

    # 6. The last words
    finished = finish(folder)
    print(run_report.summary(metrics))
    if caveat := calibration_caveat(len(data.validation.rows)):
        print(caveat)
    print(f"saved {finished} (metrics with intervals, plots and the model card are in it)")
    print(f"next: python3 inference/run_gradio_model.py --model_save_dir {finished} --hf_model_name {recipe.base_name}")
    return finished


def read_inputs(args: argparse.Namespace) -> tuple[ParentRouter | None, TrainingData]:
    """The router to go on from, if any, and the rows; those that it was trained on never judge."""
    parent = parent_router(args.hf_model_name)
    if args.unlabelled_files and not parent:
        raise InputError("--unlabelled_files are for a router to go on from; name its folder with --hf_model_name")
    known = trained_prompts(parent.folder) if parent else frozenset()
    files = (args.train_files, args.questions_file, args.seed, args.limit, args.auxiliary_files)
    return parent, read_training_data(*files, known, args.unlabelled_files)


def start_process():
    """This process among those of a launcher such as torchrun; alone it is the main one."""
    import torch
    import transformers
    from accelerate import PartialState

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    keep_freed_memory()
    return PartialState(cpu=not torch.cuda.is_available())


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, or each step has the kernel clear the same big blocks anew: a tenth of training.

    The numbers are those of malloc.h (man 3 mallopt).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def run_folder(args: argparse.Namespace, recipe: "Recipe") -> Path:
    """The folder the run works in, the same in all processes; it loses `.unfinished` when everything is in it."""
    from accelerate.utils import broadcast_object_list

    folder = args.resume_from_checkpoint
    if folder is None:
        name = f"{recipe.base_name.replace('/', '-')}-router-finetuning-{timestamp()}-save{UNFINISHED}"
        folder = args.output_dir / name
    return broadcast_object_list([folder])[0]


def request_finder(
    recipe: "Recipe", tokenizer, data: TrainingData, folder: Path, process: "PartialState"
) -> OnnxModel | None:
    """What finds requests in frames: the parent router's, an interrupted run's, or a new one; None without any.

    A router without one is served, too: it reads texts whole. So no fault of an exporter ends the run.
    """
    from finetuning_model.request_finder import export_request_finder, train_request_finder

    path = folder / REQUEST_FINDER_FILE
    if process.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    process.wait_for_everyone()
    known = Path(recipe.continued_from or "") / REQUEST_FINDER_FILE
    if recipe.continued_from and known.exists():
        if process.is_main_process:
            shutil.copy(known, path)
    elif recipe.find_requests and not path.exists():
        if process.is_main_process:
            print("training what finds a request in its frame ...", flush=True)
        model = train_request_finder(recipe, tokenizer, data.train, folder)
        try:
            if process.is_main_process:
                export_request_finder(model, recipe, tokenizer, data.train, folder)
        except Exception as error:  # exporters fail in many ways
            print(f"no request finder: {type(error).__name__}: {error}", flush=True)
    process.wait_for_everyone()
    return OnnxModel(path) if path.exists() else None


def train_one_seed(
    recipe: "Recipe", tokenizer, lesson: Split, data: TrainingData, seed: int, folder: Path, finder: OnnxModel | None
) -> "TrainedModel":
    """Fine-tune, then fit temperature and bias on the validation part, framed as training saw it.

    The bias goes into the head; the log gets both, and the loss of the calibrated scores.
    """
    import transformers

    from finetuning_model.evaluation.metrics import fit_temperature
    from finetuning_model.training import add_logit_bias, fine_tune

    transformers.set_seed(seed)
    run = fine_tune(recipe, tokenizer, lesson, data.validation, seed, folder)
    settings = RouterSettings(max_length=recipe.max_length, finder_length=recipe.finder_length)
    router = Router.from_model(run.model, tokenizer, settings, finder)
    logits = router.logits(recipe.frame(data.validation.prompts))
    margin, labels = logits[:, 1] - logits[:, 0], data.validation.labels
    temperature, bias = fit_temperature(margin, labels, data.base_rate)
    bias = add_logit_bias(run.model, bias)
    z = (margin + bias) / temperature
    loss = float(np.mean(np.logaddexp(0, z) - labels * z))
    run.log |= {"validation_loss": loss, "temperature": temperature, "logit_bias": bias}
    return run


def calibrated_settings(recipe: "Recipe", run: "TrainedModel", parent: ParentRouter | None) -> RouterSettings:
    """The checkpoint's settings, thresholds left out; what the user set in a parent's about scripts stays."""
    settings = RouterSettings(
        base_model=recipe.base_name,
        continued_from=recipe.continued_from,
        max_length=recipe.max_length,
        finder_length=recipe.finder_length,
        temperature=run.log["temperature"],
    )
    if parent:
        settings.scripts, settings.unfamiliar_route = parent.settings.scripts, parent.settings.unfamiliar_route
    return settings


def calibration_caveat(validation_rows: int) -> str | None:
    """What to say where temperature and thresholds rest on too few rows; None where they are enough."""
    if validation_rows >= ENOUGH_TO_CALIBRATE:
        return None
    rows = f"{ENOUGH_TO_CALIBRATE / HELD_OUT:,.0f}"
    return (
        f"only {validation_rows} rows calibrated it: take its order, but not its probabilities and thresholds; "
        f"{ENOUGH_TO_CALIBRATE} would do, which takes some {rows} rows in --train_files, or choose a threshold on "
        "outcomes that are not among them: python3 finetuning_model/choose_threshold.py"
    )


def save_checkpoint(folder: Path, model, tokenizer, settings: RouterSettings) -> None:
    """Weights, config and tokenizer as plain `from_pretrained` reads them, and router.json."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings.save(folder)


def finish(folder: Path) -> Path:
    """Delete what only an interrupted run needs, and give the folder its final name."""
    for state in folder.glob("seed-*"):
        shutil.rmtree(state)
    return folder.rename(folder.with_name(folder.name.removesuffix(UNFINISHED)))


if __name__ == "__main__":
    run_script(main)
