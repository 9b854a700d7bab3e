"""The ONNX graph of a checkpoint: exported in the form that ONNX Runtime runs fastest on a CPU, smoothed, quantised."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForSequenceClassification

from router_data import LABELS

SMOOTHING = 0.6  # share of the channels' unevenness that moves from the inputs to the weights
GELU_MINIMUM = -0.17  # no value of this activation is lower (-0.16998)
OPSET = 17


def write_fp32(folder: Path, path: Path) -> str | None:
    """Export a checkpoint: token ids of one prompt in, without padding and so without a mask, logits out.

    BERT's modules are rewritten for speed first. Where they are not as this code expects them, for example in another
    version of transformers, the model is exported as it is.

    Returns:
        Why it was exported as it is; None where it was rewritten.
    """
    try:
        model = load_eager(folder)
        rewrite_for_speed(model)
        export(model, path)
        return None
    except Exception as error:  # private classes of transformers may change in any way
        export(load_eager(folder), path)
        return f"{type(error).__name__}: {error}"


def load_eager(folder: Path):
    """The checkpoint's model in fp32, with attention as plain matrix products, which is what can be exported."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        dtype=torch.float32,
    ).eval()


def export(model, path: Path) -> None:
    """Write a classifier as ONNX: input_ids (batch, tokens) -> logits, (batch, 2), or (batch, tokens, 1) of tokens."""
    logits_axes = {0: "batch"} if model.config.num_labels == len(LABELS) else {0: "batch", 1: "tokens"}

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
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
        dynamic_axes={"input_ids": {0: "batch", 1: "tokens"}, "logits": logits_axes},
        opset_version=OPSET,
        dynamo=False,  # the newer exporter adds a mask of zeros to every layer, which costs a seventh at 512 tokens
    )


def rewrite_for_speed(model) -> None:
    """Replace the forward passes of BERT's embeddings and attention by equal ones with fewer operators.

    Only the first token's vector is classified, so the last layer computes no other.
    """
    from transformers.models.bert.modeling_bert import BertEmbeddings, BertForSequenceClassification, BertSelfAttention

    last = model.bert.encoder.layer[-1].attention if type(model) is BertForSequenceClassification else None
    for module in list(model.modules()):
        if type(module) is BertEmbeddings:
            module.forward = fold_segment_embeddings(module)  # type: ignore[method-assign]
        if type(module) is BertSelfAttention and not module.is_decoder:
            first_only = last is not None and module is last.self
            module.forward = fuse_attention(module, first_only)  # type: ignore[method-assign]
    if last:
        add_and_normalise = last.output.forward
        last.output.forward = lambda attended, hidden_states: add_and_normalise(attended, hidden_states[:, :1])


def fold_segment_embeddings(embeddings) -> Callable:
    """The forward pass of BERT's embeddings for one segment, which needs two tables instead of three."""
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    embeddings.positions = torch.nn.Parameter(positions.detach(), requires_grad=False)

    def forward(input_ids, *args, **kwargs):
        words = embeddings.word_embeddings(input_ids)
        return embeddings.LayerNorm(words + embeddings.positions[: input_ids.shape[1]])

    return forward


def fuse_attention(attention, first_token_only: bool) -> Callable:
    """The forward pass of BERT's attention as one product for query, key and value, and one operator for the rest.

    As transformers write it, attention is exported as more than 20 operators. With `first_token_only` the first token
    alone attends, so the query is a product of its own.
    """
    heads, parts = attention.num_attention_heads, [attention.query, attention.key, attention.value][first_token_only:]
    size = attention.query.out_features
    joined = attention.joined = torch.nn.Linear(attention.query.in_features, size * len(parts))
    joined.weight.data = torch.cat([part.weight for part in parts])
    joined.bias.data = torch.cat([part.bias for part in parts])
    attention.requires_grad_(False)

    class MultiHeadAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *projected):
            split = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in projected)
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


@dataclass
class Graph:
    """An ONNX model under change: its nodes in order, and its weight matrices by name."""

    model: Any
    nodes: list = field(init=False)
    weights: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = list(self.model.graph.node)
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def insert(self, at: int, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """Put a new node at a position."""
        self.nodes.insert(at, onnx.helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; returns its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def matrix(self, node) -> np.ndarray:
        """The weights that a product multiplies by, shape (inputs, outputs)."""
        return numpy_helper.to_array(self.weights[node.input[1]])

    def save(self, path: Path) -> None:
        """Write the model with its changed nodes."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        onnx.save(self.model, path)


def weight_matmuls(graph) -> list:
    """The nodes that multiply by a weight matrix of their own; `input` 0 is what comes in, 1 names the weights."""
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    uses = Counter(name for node in graph.node for name in node.input)
    return [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and uses[node.input[1]] == 1
    ]


def ffn_output_matmuls(path: Path) -> list[str]:
    """The names of the products with more inputs than outputs: the second one of every feed-forward layer."""
    graph = onnx.load(path).graph
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    return [node.name for node in weight_matmuls(graph) if dims[node.input[1]][0] > dims[node.input[1]][1]]


def write_smoothed(plain: Path, path: Path, rows: Sequence[list[int]]) -> None:
    """Prepare the products for int8, without changing what they compute.

    Inputs get one int8 scale for everything, so a few wide channels, or one extreme token, cost the rest their
    precision; weights have a scale a column. So channels are made about equally wide before a product
    (`smooth_by_channel`); before the products whose inputs vary most between tokens, tokens are (`scale_by_token`).
    The outputs of attention are even enough as they are.

    Args:
        plain: the fp32 file.
        path: where the result goes.
        rows: token ids of prompts, to see how wide each channel is.
    """
    graph = Graph(onnx.load(plain))
    from_attention = {name for node in graph.nodes if node.op_type == "MultiHeadAttention" for name in node.output}
    matmuls_by_input = defaultdict(list)  # several products, such as query, key and value, share an input
    for node in weight_matmuls(graph.model.graph):
        if node.input[0] not in from_attention:
            matmuls_by_input[node.input[0]].append(node)
    lowest, highest = channel_ranges(plain, list(matmuls_by_input), rows)
    floor = graph.constant("smoothing/floor", np.array(-GELU_MINIMUM, dtype=np.float32))
    for name, matmuls in matmuls_by_input.items():
        if any(graph.matrix(node).shape[0] > graph.matrix(node).shape[1] for node in matmuls):
            smoothed = scale_by_token(graph, name, matmuls, floor, np.min(lowest[name]) >= GELU_MINIMUM)
        else:
            smoothed = smooth_by_channel(graph, name, matmuls, np.maximum(highest[name], -lowest[name]))
        for node in matmuls:
            node.input[0] = smoothed
    graph.save(path)


def channel_ranges(path: Path, names: list[str], rows: Sequence[list[int]]) -> tuple[dict, dict]:
    """The lowest and the highest value of each channel of some inner values over some prompts: name -> (channels,)."""
    probe = onnx.load(path)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    lowest: dict[str, Any] = dict.fromkeys(names, 0.0)
    highest = dict(lowest)
    for row in rows:
        for name, values in zip(names, session.run(names, {"input_ids": np.array([row])}), strict=True):
            channels = values.reshape(-1, values.shape[-1])
            lowest[name] = np.minimum(lowest[name], channels.min(axis=0))
            highest[name] = np.maximum(highest[name], channels.max(axis=0))
    return lowest, highest


def smooth_by_channel(graph: Graph, name: str, matmuls: list, width: np.ndarray) -> str:
    """Make the channels of an input about equally wide, and the rows of the weights uneven in turn.

    x W = (x / s) (s W), with s = max|x|^a / max|W|^(1 - a) a channel (SmoothQuant, Xiao et al. 2022).

    Args:
        width: max|x| of each channel, shape (channels,).

    Returns:
        The name of the input's even form.
    """
    matrices = [graph.matrix(node) for node in matmuls]
    weight_width = np.maximum(np.abs(np.concatenate(matrices, axis=1)).max(axis=1), 1e-5)
    scale = np.maximum(width, 1e-5) ** SMOOTHING / weight_width ** (1 - SMOOTHING)
    scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    smoothed = f"{name}/even"
    at = min(graph.nodes.index(node) for node in matmuls)
    graph.insert(at, "Mul", [name, graph.constant(f"{name}/factor", 1 / scale)], smoothed)
    for node, matrix in zip(matmuls, matrices, strict=True):
        graph.weights[node.input[1]].CopyFrom(numpy_helper.from_array(matrix * scale[:, None], node.input[1]))
    return smoothed


def scale_by_token(graph: Graph, name: str, matmuls: list, floor: str, is_gelu: bool) -> str:
    """Divide each token's vector by its widest value before the products, and multiply what they give by it.

    Args:
        floor: the constant below which no width falls.
        is_gelu: no value lies far below zero, so the widest value is the highest one, which saves an Abs.

    Returns:
        The name of the input's even form.
    """
    sizes, largest, width, smoothed = (f"{name}/{part}" for part in ("sizes", "largest", "width", "even"))
    at = min(graph.nodes.index(node) for node in matmuls)
    graph.insert(at, "Div", [name, width], smoothed)
    graph.insert(at, "Max", [largest, floor], width)
    graph.insert(at, "ReduceMax", [name if is_gelu else sizes], largest, axes=[-1], keepdims=1)
    if not is_gelu:
        graph.insert(at, "Abs", [name], sizes)
    for node in matmuls:
        result, node.output[0] = node.output[0], f"{node.output[0]}/of_even"
        graph.insert(graph.nodes.index(node) + 1, "Mul", [node.output[0], width], result)
    return smoothed


def write_int8(fp32: Path, path: Path, left_in_fp32: Sequence[str]) -> None:
    """Quantise the products: weights to int8 with a scale a column, inputs to uint8 as they come."""
    heads = [node.name for node in onnx.load(fp32).graph.node if node.op_type == "Gemm"]  # pooler and classifier: small
    quantize_dynamic(
        fp32,
        path,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[*left_in_fp32, *heads, *(f"{name}_MatMul" for name in heads)],  # ORT's name for a split Gemm
    )
