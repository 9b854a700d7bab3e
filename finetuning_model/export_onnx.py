"""Make the ONNX file that a checkpoint is served from: int8 weights where the scores stay, else fp32.

Stage 3 calls `export_onnx` when it saves. This script does the same for an older checkpoint, for one whose weights
were changed, or after an update of ONNX Runtime.

Reads   the checkpoint's folder, and labelled rows to check the scores on (its validation_predictions.jsonl).
Writes  model_int8.onnx (or model.onnx) into the folder, and its name, fingerprint and evidence into router.json.

Example:
    python3 finetuning_model/export_onnx.py \\
        --model_save_dir models/bert-base-uncased-router-finetuning-20240722T133228-save
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from router_data import SUPERIOR, InputError, LabelledPrompt, expand_paths, program_parser, read_rows, run_script
from router_model import (
    VALIDATION_FILE,
    OnnxModel,
    OnnxRecord,
    Router,
    RouterSettings,
    fingerprint,
    newest_checkpoint,
    onnx_fault,
    read_config,
    weight_files,
)

MAX_MEAN_CHANGE = 0.01  # of the router score, int8 against fp32, over the rows compared
MAX_AUROC_LOSS = 0.003
MAX_EXPORT_ERROR = 1e-3  # fp32 ONNX against PyTorch: more means that the exporter misread the model
ROWS_AGAINST_TORCH = 32
ROWS_FOR_RANGES = 128
ROWS_TO_COMPARE = 640  # the two scores of a row lie close together, so more would tell little more, a few too little
ONNX_FILES = ("model.onnx", "model_int8.onnx")


def export_onnx(
    model_save_dir: str | Path,
    prompts: Sequence[str],
    labels: Sequence[int],
    say: Callable[[str], None] = print,
) -> dict:
    """Write the fastest ONNX file whose scores stay, and record it in router.json.

    The weights of the matrix products become int8, one scale a column, and their inputs are quantised as they come,
    after they were made even (`write_smoothed`); embeddings, normalisations, pooler and classifier stay fp32. Where
    that moves the scores too far (see the limits above), the feed-forward layers' second products, whose inputs have
    the widest range, stay fp32 too; where even that moves them, everything does.

    A model that can't be exported loses nothing: router.json then names no ONNX file and PyTorch serves it.

    Args:
        model_save_dir: the checkpoint's folder, complete but for the ONNX file.
        prompts: to compare the scores on; training rows will do, since no quality is judged.
        labels: 1 where the superior model is preferred, else 0; one a prompt.
        say: what gets the one line about what was made.

    Returns:
        What router.json says of the file, with `onnx_file` (None where there is none) and `reason` (why it is not
        int8, or why there is none).
    """
    folder = Path(model_save_dir)
    try:
        with silenced(), tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
            onnx_file, record = export_and_quantise(folder, Path(scratch), prompts, labels)
    except Exception as error:  # exporters fail in many ways, and none of them may cost a trained checkpoint
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        if onnx_fault(folder, RouterSettings.load(folder)):  # an older file that still fits the weights is kept
            record_onnx(folder, None, None)
        say(f"no ONNX file: {reason}; PyTorch serves this checkpoint")
        return {"onnx_file": None, "reason": reason}
    record_onnx(folder, onnx_file, record)
    if record.not_rewritten:
        warnings.warn(f"the ONNX file is slower than it could be: {record.not_rewritten}", stacklevel=2)
    say(f"{onnx_file}: {describe_record(record)}")
    return {"onnx_file": onnx_file, **record.model_dump()}


def export_and_quantise(
    folder: Path, scratch: Path, prompts: Sequence[str], labels: Sequence[int]
) -> tuple[str, OnnxRecord]:
    """Export, quantise, compare with fp32; move the file chosen into the folder."""
    from finetuning_model.onnx_graph import ffn_output_matmuls, write_fp32, write_int8, write_smoothed

    reference = Router.load(folder, backend="torch")
    every = max(1, -(-len(prompts) // ROWS_TO_COMPARE))
    prompts, labels = prompts[::every], labels[::every]
    rows = [row.ids for row in reference.encoder.encode(prompts)]
    if not rows:
        raise InputError("no rows to compare the scores on")

    def scores_of(path: Path, rows: list[list[int]]) -> np.ndarray:
        return Router(reference.settings, reference.encoder, OnnxModel(path), "onnx").score_ids(rows)

    plain, smoothed = scratch / "model.onnx", scratch / "smoothed.onnx"
    not_rewritten = write_fp32(folder, plain)
    by_length = sorted(rows, key=len)
    sample = [*by_length[:: max(1, len(rows) // ROWS_AGAINST_TORCH)], by_length[-1]]
    error = float(np.abs(scores_of(plain, sample) - reference.score_ids(sample)).max())
    if error > MAX_EXPORT_ERROR:
        raise RuntimeError(f"the exported model is off by {error:.4f}")

    exact = scores_of(plain, rows)
    write_smoothed(plain, smoothed, rows[:: max(1, len(rows) // ROWS_FOR_RANGES)])
    schemes = {"int8": [], "int8, second feed-forward products fp32": ffn_output_matmuls(smoothed)}
    tried = []
    for number, (scheme, left_in_fp32) in enumerate(schemes.items()):
        path = scratch / f"model_int8_{number}.onnx"
        write_int8(smoothed, path, left_in_fp32)
        figures = compare_to_fp32(exact, scores_of(path, rows), labels)
        tried.append({"scheme": scheme, **figures})
        if figures["mean_change"] <= MAX_MEAN_CHANGE and (figures["auroc_loss"] or 0) <= MAX_AUROC_LOSS:
            record = OnnxRecord(scheme=scheme, **figures)
            break
    else:
        path, reason = plain, f"int8 moved the scores by {moved(tried[-1])}"
        record = OnnxRecord(scheme="fp32", reason=reason, **compare_to_fp32(exact, exact, labels))
    record.export_error = error
    record.not_rewritten = not_rewritten
    record.tried = tried
    record.weights = fingerprint(weight_files(folder))
    record.file = fingerprint([path])
    name = ONNX_FILES[record.scheme != "fp32"]
    os.replace(path, folder / name)
    return name, record


def compare_to_fp32(exact: np.ndarray, scores: np.ndarray, labels: Sequence[int]) -> dict:
    """How far the scores moved: mean and largest |change|, and the loss of AUROC (None with one class only)."""
    from sklearn.metrics import roc_auc_score

    change = np.abs(scores - exact)
    auroc_loss = None
    if len(set(map(int, labels))) == 2:
        auroc_loss = float(roc_auc_score(labels, exact) - roc_auc_score(labels, scores))
    return {
        "rows": len(exact),
        "mean_change": float(change.mean()),
        "max_change": float(change.max()),
        "auroc_loss": auroc_loss,
    }


def describe_record(record: OnnxRecord) -> str:
    """The evidence in one line."""
    if record.reason:
        return f"{record.scheme}, since {record.reason} over {record.rows} rows"
    return f"{record.scheme}; over {record.rows} rows scores moved by {moved(record.model_dump())}"


def moved(figures: dict) -> str:
    """What `compare_to_fp32` found, both of what is bounded."""
    loss = figures["auroc_loss"]
    return f"{figures['mean_change']:.4f} on average" + ("" if loss is None else f", AUROC by {-loss:+.4f}")


def record_onnx(folder: Path, onnx_file: str | None, record: OnnxRecord | None) -> None:
    """Name the file in router.json (made where there was none); delete the ONNX files it no longer names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = RouterSettings.load(folder)
    settings.onnx_file, settings.onnx = onnx_file, record
    settings.save(folder)
    for name in set(ONNX_FILES) - {onnx_file}:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def silenced() -> Iterator[None]:
    """No progress bars, warnings and notes of the exporters while it lasts."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)")
    add(
        "--validation_files", nargs="+", metavar="FILE",
        help=f"labelled rows to compare the scores on (default: the folder's {VALIDATION_FILE})",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Export the checkpoint and say what was made."""
    args = parse_args(argv)

    # 1. The checkpoint and the rows to check it on; never its test rows
    folder = args.model_save_dir or newest_checkpoint()
    read_config(folder)
    if not args.validation_files and not (folder / VALIDATION_FILE).exists():
        raise InputError(
            f"{folder} has no {VALIDATION_FILE} to compare the scores on; name labelled rows with --validation_files"
        )
    files = expand_paths(args.validation_files or [folder / VALIDATION_FILE])
    rows = [row for file in files for row in read_rows(file, LabelledPrompt)]

    # 2. The file
    made = export_onnx(folder, [row.prompt for row in rows], [row.label == SUPERIOR for row in rows])
    if not made["onnx_file"]:
        raise InputError(f"{folder} was not exported: {made['reason']}")
    print(f"next: python3 inference/run_gradio_model.py --model_save_dir {folder}")


if __name__ == "__main__":
    run_script(main)
