"""Make the ONNX file that a checkpoint is served from: int8 weights where the scores stay, else fp32.

Stage 3 calls `export_onnx` when it saves. This script does the same for an older checkpoint, for one whose weights
were changed, or after an update of ONNX Runtime.

Reads:  the checkpoint's folder, and labelled rows to check the scores on (its validation_predictions.jsonl).
Writes: model_int8.onnx (or model.onnx) into the folder, and its name, fingerprint and evidence into router.json.

    python3 finetuning_model/export_onnx.py \\
        --model_save_dir models/bert-base-uncased-router-finetuning-20240722T133228-save
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from router_data import SUPERIOR, InputError, expand_paths, read_rows, run_script
from router_model import (
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

MAX_MEAN_CHANGE = 0.01  # of the superior probability, int8 against fp32, over the validation rows
MAX_AUROC_LOSS = 0.003
MAX_EXPORT_ERROR = 1e-3  # fp32 ONNX against PyTorch: more means that the exporter misread the model
ROWS_AGAINST_TORCH = 32
ROWS_FOR_RANGES = 128
SMOOTHING = 0.6  # share of the channels' unevenness that is moved from the inputs to the weights
GELU_MINIMUM = -0.17  # no value of this activation is lower (-0.16998)
VALIDATION_FILE = "validation_predictions.jsonl"


class ValidationRow(BaseModel):
    """What a check needs of a labelled row."""

    prompt: str
    label: Literal["ROUTE_TO_INFERIOR", "ROUTE_TO_SUPERIOR"]


def export_onnx(
    model_save_dir: str | Path,
    validation_prompts: Sequence[str],
    validation_labels: Sequence[int],
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
        validation_prompts: prompts to compare the scores on.
        validation_labels: 1 where the superior model is preferred, else 0; one a prompt.
        say: what gets the one line about what was made.

    Returns:
        What router.json says of the file, with `onnx_file` (None where there is none) and `reason` (why it is not
        int8, or why there is none).
    """
    folder = Path(model_save_dir)
    try:
        with quiet(), tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
            onnx_file, record = best_file(folder, Path(scratch), validation_prompts, validation_labels)
    except Exception as error:  # exporters fail in many ways, and none of them may cost a trained checkpoint
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        if onnx_fault(folder, RouterSettings.load(folder)):  # an older file that still fits the weights is kept
            remember(folder, None, None)
        say(f"no ONNX file: {reason}; PyTorch serves this checkpoint")
        return {"onnx_file": None, "reason": reason}
    remember(folder, onnx_file, record)
    say(f"{onnx_file}: {describe(record)}")
    return {"onnx_file": onnx_file, **record.model_dump()}


def best_file(folder: Path, scratch: Path, prompts: Sequence[str], labels: Sequence[int]) -> tuple[str, OnnxRecord]:
    """Export, quantise, compare; move the file chosen into the folder."""
    reference = Router.load(folder, backend="torch")
    rows = [row.ids for row in reference.encoder.encode(prompts)]
    if not rows:
        raise InputError("no validation rows to compare the scores on")

    plain = scratch / "model.onnx"
    write_fp32(folder, plain)

    def scores_of(path: Path, of: list[list[int]]) -> np.ndarray:
        return Router(reference.settings, reference.encoder, OnnxModel(path), "onnx").score_ids(of)

    by_length = sorted(rows, key=len)
    sample = [*by_length[:: max(1, len(rows) // ROWS_AGAINST_TORCH)], by_length[-1]]
    error = float(np.abs(scores_of(plain, sample) - reference.score_ids(sample)).max())
    if error > MAX_EXPORT_ERROR:
        raise RuntimeError(f"the exported model is off by {error:.4f}")

    exact = scores_of(plain, rows)
    smoothed = scratch / "smoothed.onnx"
    write_smoothed(plain, smoothed, rows[:: max(1, len(rows) // ROWS_FOR_RANGES)])
    record, tried = None, []
    for scheme, left_in_fp32 in (
        ("int8", ()),
        ("int8, second feed-forward products fp32", narrowing_products(smoothed)),
    ):
        path = scratch / f"model_int8_{len(tried)}.onnx"
        write_int8(smoothed, path, left_in_fp32)
        figures = compare(exact, scores_of(path, rows), labels)
        tried.append({"scheme": scheme, **figures})
        if figures["mean_change"] <= MAX_MEAN_CHANGE and (figures["auroc_loss"] or 0) <= MAX_AUROC_LOSS:
            record = OnnxRecord(scheme=scheme, **figures)
            break
    else:
        path, figures = plain, compare(exact, exact, labels)
        record = OnnxRecord(
            scheme="fp32", reason=f"int8 moved the scores by {tried[-1]['mean_change']:.4f} on average", **figures
        )
    record.export_error = error
    record.tried = tried
    record.weights = fingerprint(weight_files(folder))
    record.file = fingerprint([path])
    name = "model.onnx" if record.scheme == "fp32" else "model_int8.onnx"
    os.replace(path, folder / name)
    return name, record


def write_fp32(folder: Path, path: Path) -> None:
    """Export the checkpoint: token ids of one prompt in, without padding and so without a mask, logits out."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.models.bert.modeling_bert import BertEmbeddings, BertForSequenceClassification, BertSelfAttention

    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        dtype=torch.float32,
    ).eval()
    last = model.bert.encoder.layer[-1].attention if type(model) is BertForSequenceClassification else None
    for module in list(model.modules()):
        if type(module) is BertEmbeddings:
            module.forward = of_one_segment(module)
        if type(module) is BertSelfAttention and not module.is_decoder:
            module.forward = in_two_operators(module, first_token_only=last is not None and module is last.self)
    if last:  # only the first token's vector is classified, so the last layer makes no other
        add_and_normalise = last.output.forward
        last.output.forward = lambda attended, hidden_states: add_and_normalise(attended, hidden_states[:, :1])

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids).logits

    torch.onnx.export(
        Logits(),
        (torch.ones(1, 16, dtype=torch.int64),),
        str(path),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_axes={"input_ids": {0: "batch", 1: "tokens"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the other exporter adds a mask of zeros to every layer, which costs a seventh at 512 tokens
    )


def of_one_segment(embeddings) -> Callable:
    """The forward pass of BERT's embeddings for one segment, which needs two tables instead of three."""
    import torch

    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    embeddings.positions = torch.nn.Parameter(positions.detach(), requires_grad=False)

    def forward(input_ids, *args, **kwargs):
        words = embeddings.word_embeddings(input_ids)
        return embeddings.LayerNorm(words + embeddings.positions[: input_ids.shape[1]])

    return forward


def in_two_operators(attention, first_token_only: bool) -> Callable:
    """The forward pass of BERT's attention as ONNX Runtime is fastest at it: one product for query, key and value, and
    one operator for the rest. As transformers write it, it is exported as more than 20.

    With `first_token_only` the first token alone attends, so the query is a product of its own.
    """
    import torch

    heads, parts = attention.num_attention_heads, [attention.query, attention.key, attention.value][first_token_only:]
    size = attention.query.out_features
    joined = attention.joined = torch.nn.Linear(attention.query.in_features, size * len(parts))
    joined.weight.data = torch.cat([part.weight for part in parts])
    joined.bias.data = torch.cat([part.bias for part in parts])
    attention.requires_grad_(False)

    class MultiHeadAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *projected):
            split = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in projected)
            return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

        @staticmethod
        def symbolic(graph, *projected):
            out = graph.op("com.microsoft::MultiHeadAttention", *projected, num_heads_i=heads)
            return out.setType(projected[0].type())

    def forward(hidden_states, *args, **kwargs):
        projected = joined(hidden_states).split(size, dim=-1)
        if first_token_only:
            projected = (attention.query(hidden_states[:, :1]), *projected)
        return MultiHeadAttention.apply(*projected), None

    return forward


def products(graph) -> list:
    """The nodes that multiply by a weight matrix of their own; `input` 0 is what comes in, 1 names the weights."""
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    uses = Counter(name for node in graph.node for name in node.input)
    return [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and uses[node.input[1]] == 1
    ]


def narrowing_products(path: Path) -> list[str]:
    """The names of the products with more inputs than outputs: the second one of every feed-forward layer."""
    import onnx

    graph = onnx.load(path).graph
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    return [node.name for node in products(graph) if dims[node.input[1]][0] > dims[node.input[1]][1]]


def write_smoothed(plain: Path, path: Path, rows: Sequence[list[int]]) -> None:
    """Prepare the products for int8, without changing what they compute.

    Inputs get one int8 scale for everything, so a few wide channels, or one extreme token, cost the rest their
    precision; weights have a scale a column. So before a product the channels are made about equally wide, and the
    weights' rows uneven in turn: x W = (x / s) (s W), with s = max|x|^a / max|W|^(1 - a) a channel (SmoothQuant, Xiao
    et al. 2022). Before the narrowing products, whose inputs vary most between tokens, each token's vector is divided
    by its largest value instead, and the product multiplied by it. What attention gives is even enough as it is.

    Args:
        plain: the fp32 file.
        path: where the result goes.
        rows: token ids of prompts, to see how wide each channel is.
    """
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    model = onnx.load(plain)
    nodes = list(model.graph.node)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    of_attention = {name for node in nodes if node.op_type == "MultiHeadAttention" for name in node.output}
    fed_by = defaultdict(list)  # several products, such as query, key and value, share an input
    for node in products(model.graph):
        if node.input[0] not in of_attention:
            fed_by[node.input[0]].append(node)

    def insert(at: int, kind: str, inputs: list[str], output: str, **attributes) -> None:
        nodes.insert(at, onnx.helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    # 1. The highest and the lowest value seen in each channel
    probe = onnx.load(plain)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in fed_by)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    highest: dict[str, np.ndarray | float] = dict.fromkeys(fed_by, 0.0)
    lowest = dict(highest)
    for row in rows:
        for name, values in zip(fed_by, session.run(list(fed_by), {"input_ids": np.array([row])}), strict=True):
            channels = values.reshape(-1, values.shape[-1])
            highest[name] = np.maximum(highest[name], channels.max(axis=0))
            lowest[name] = np.minimum(lowest[name], channels.min(axis=0))

    # 2. What makes the inputs even, and what undoes it
    floor = constant("smoothing/floor", np.float32(-GELU_MINIMUM))
    for name, fed in fed_by.items():
        matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in fed]
        narrowing = any(matrix.shape[0] > matrix.shape[1] for matrix in matrices)
        at = min(nodes.index(node) for node in fed)
        even = f"{name}/even"
        if narrowing:
            sizes, largest, width = (f"{name}/{each}" for each in ("sizes", "largest", "width"))
            insert(at, "Div", [name, width], even)
            insert(at, "Max", [largest, floor], width)
            if np.min(lowest[name]) >= GELU_MINIMUM:  # the widest value is the highest one
                insert(at, "ReduceMax", [name], largest, axes=[-1], keepdims=1)
            else:
                insert(at, "ReduceMax", [sizes], largest, axes=[-1], keepdims=1)
                insert(at, "Abs", [name], sizes)
            for node in fed:
                result, node.output[0] = node.output[0], f"{node.output[0]}/of_even"
                insert(nodes.index(node) + 1, "Mul", [node.output[0], width], result)
        else:
            width_of_values = np.maximum(np.maximum(highest[name], -lowest[name]), 1e-5)
            width_of_weights = np.maximum(np.abs(np.concatenate(matrices, axis=1)).max(axis=1), 1e-5)
            scale = width_of_values**SMOOTHING / width_of_weights ** (1 - SMOOTHING)
            scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
            insert(at, "Mul", [name, constant(f"{name}/factor", 1 / scale)], even)
            for node, matrix in zip(fed, matrices, strict=True):
                weights[node.input[1]].CopyFrom(numpy_helper.from_array(matrix * scale[:, None], node.input[1]))
        for node in fed:
            node.input[0] = even
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def write_int8(fp32: Path, path: Path, left_in_fp32: Sequence[str]) -> None:
    """Quantise the products: weights to int8 with a scale a column, inputs to uint8 as they come."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    heads = [node.name for node in onnx.load(fp32).graph.node if node.op_type == "Gemm"]  # pooler and classifier: small
    quantize_dynamic(
        fp32,
        path,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[*left_in_fp32, *heads, *(f"{name}_MatMul" for name in heads)],  # ORT's name for a split Gemm
    )


def compare(exact: np.ndarray, scores: np.ndarray, labels: Sequence[int]) -> dict:
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


def describe(record: OnnxRecord) -> str:
    """The evidence in one line."""
    if record.reason:
        return f"{record.scheme}, since {record.reason} over {record.rows} validation rows"
    loss = "" if record.auroc_loss is None else f", AUROC by {-record.auroc_loss:+.4f}"
    return (
        f"{record.scheme}; over {record.rows} validation rows scores moved by {record.mean_change:.4f} on average{loss}"
    )


def remember(folder: Path, onnx_file: str | None, record: OnnxRecord | None) -> None:
    """Name the file in router.json (made where there was none); delete the ONNX files it no longer names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = RouterSettings.load(folder)
    settings.onnx_file, settings.onnx = onnx_file, record
    settings.save(folder)
    for name in {"model.onnx", "model_int8.onnx"} - {onnx_file}:
        (folder / name).unlink(missing_ok=True)


class quiet:
    """No progress bars, warnings and notes of the exporters while it lasts."""

    def __enter__(self):
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error):
        logging.disable(self._disabled)
        self._warnings.__exit__(*error)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_save_dir", help="the checkpoint's folder (default: the newest in ./models)", metavar="DIR"
    )
    parser.add_argument(
        "--validation_files",
        nargs="+",
        metavar="FILE",
        help=f"JSONL with prompt and label to compare the scores on (default: the folder's {VALIDATION_FILE})",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. The checkpoint and the rows to check it on; never its test rows
    folder = Path(args.model_save_dir or newest_checkpoint())
    read_config(folder)
    if not args.validation_files and not (folder / VALIDATION_FILE).exists():
        raise InputError(
            f"{folder} has no {VALIDATION_FILE} to compare the scores on; name labelled rows with --validation_files"
        )
    files = expand_paths(args.validation_files or [folder / VALIDATION_FILE])
    rows = [row for file in files for row in read_rows(file, ValidationRow)]

    # 2. The file
    made = export_onnx(folder, [row.prompt for row in rows], [row.label == SUPERIOR for row in rows])
    if not made["onnx_file"]:
        raise InputError(f"{folder} was not exported: {made['reason']}")


if __name__ == "__main__":
    run_script(main)
