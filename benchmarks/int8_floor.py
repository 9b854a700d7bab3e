"""The least time a decision can take on this machine: its multiplications and additions at the int8 rate measured."""

import json
import struct
from pathlib import Path

import numpy as np

from benchmarks.machine import cores, timed


def operations(folder: Path, tokens: int) -> float:
    """Multiplications and additions of one forward pass: 2 a weight and token, 4 n^2 d a layer for the attention."""
    config = json.loads((folder / "config.json").read_text())
    weights = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes = {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
        weights += sum(np.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and ".layer" in name)
    return tokens * (2 * weights + 4 * tokens * config["hidden_size"] * config["num_hidden_layers"])


def int8_rate(size: int = 1024) -> float:
    """Operations a second of the best of 200 int8 products of square matrices, on all cores."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.integers(-127, 128, (size, size), dtype=np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights"], ["outputs"])],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, (size, size))],
        [helper.make_tensor_value_info("outputs", TensorProto.INT32, (size, size))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"inputs": generator.integers(0, 256, (size, size), dtype=np.uint8)}
    return 2 * size**3 / min(timed(lambda: session.run(None, inputs)) for _ in range(200))
