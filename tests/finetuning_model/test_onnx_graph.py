"""The rewritten ONNX graph: equal to the model it was made from, with the operators that make it fast."""

from collections import Counter

import numpy as np
import pytest
from conftest import EASY, LABELS_OF_PROMPTS, PROMPTS, random_bert, save_checkpoint

from finetuning_model import export_onnx as export
from finetuning_model import onnx_graph
from router_model import OnnxModel, Router

pytestmark = pytest.mark.slow
LONG = " ".join(EASY * 30)


def token_ids(folder, prompts) -> list[list[int]]:
    return [row.ids for row in Router.load(folder, backend="torch").encoder.encode(prompts)]


def kinds_in(path) -> Counter:
    """How many operators of each kind a graph has."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_smoothing_changes_no_score_of_the_fp32_model(exported_checkpoint, tmp_path):
    rows = token_ids(exported_checkpoint, PROMPTS)
    with export.silenced():
        onnx_graph.write_fp32(exported_checkpoint, tmp_path / "plain.onnx")
        onnx_graph.write_smoothed(tmp_path / "plain.onnx", tmp_path / "smoothed.onnx", rows)
    plain, smoothed = (OnnxModel(tmp_path / name).logits(rows) for name in ("plain.onnx", "smoothed.onnx"))
    assert smoothed == pytest.approx(plain, abs=1e-4)
    assert (tmp_path / "plain.onnx").read_bytes() != (tmp_path / "smoothed.onnx").read_bytes()
    assert len(onnx_graph.ffn_output_matmuls(tmp_path / "smoothed.onnx")) == 2  # one a layer


def test_attention_of_bert_is_two_operators(exported_checkpoint):
    kinds = kinds_in(exported_checkpoint / "model_int8.onnx")
    assert kinds["MultiHeadAttention"] == 2 and not kinds["Softmax"]
    assert kinds["ReduceMax"] == 2 and not kinds["Abs"]  # what GELU gives is hardly ever below zero
    assert kinds["MatMulInteger"] == 2 * 4 + 1  # in the last layer the query is a product of its own


def test_the_last_layer_of_bert_makes_the_first_tokens_vector_alone(exported_checkpoint):
    import onnx
    import onnxruntime

    model = onnx.load(exported_checkpoint / "model_int8.onnx")
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMulInteger"]
    for name in products:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(products, {"input_ids": np.array([[2, 5, 6, 7, 3]])})
    rows_made = sorted(each.shape[1] for each in made)  # key and value are made of all tokens
    assert rows_made == [1] * 4 + [5] * 5


@pytest.fixture
def random_checkpoint(tmp_path):
    """Weights so large that the prompts differ."""
    model = random_bert()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 10
    return save_checkpoint(tmp_path / "random", settings={"max_length": 64}, model=model)


def test_the_fp32_export_gives_pytorchs_logits(random_checkpoint, tmp_path):
    router = Router.load(random_checkpoint, backend="torch")
    prompts = [*PROMPTS, LONG]
    with export.silenced():
        assert onnx_graph.write_fp32(random_checkpoint, tmp_path / "plain.onnx") is None
    logits = OnnxModel(tmp_path / "plain.onnx").logits(token_ids(random_checkpoint, prompts))
    assert logits == pytest.approx(router.logits(prompts), abs=1e-5)
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 0.1


def test_where_the_graph_cannot_be_rewritten_the_plain_one_is_written(random_checkpoint, monkeypatch):
    def changed(model):
        raise AttributeError("BertSelfAttention has changed")

    monkeypatch.setattr(onnx_graph, "rewrite_for_speed", changed)
    with pytest.warns(UserWarning, match="slower than it could be: AttributeError: BertSelfAttention has changed"):
        made = export.export_onnx(random_checkpoint, PROMPTS, LABELS_OF_PROMPTS, say=lambda line: None)
    assert made["onnx_file"] and "BertSelfAttention" in made["not_rewritten"]
    exact = Router.load(random_checkpoint, backend="torch").score(PROMPTS)
    assert Router.load(random_checkpoint, backend="onnx").score(PROMPTS) == pytest.approx(exact, abs=0.05)


def test_modernbert_is_exported_too(tmp_path):
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        local_attention=16,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    model = ModernBertForSequenceClassification(config)
    for layer in model.model.layers:  # wide, as those of a trained model are
        layer.mlp.Wi.weight.data *= 30
    folder = save_checkpoint(tmp_path / "modern", settings={"max_length": 64}, model=model)
    made = export.export_onnx(folder, [*PROMPTS, LONG], [*LABELS_OF_PROMPTS, 1], say=lambda line: None)
    assert made["onnx_file"], made
    rows = token_ids(folder, PROMPTS)
    with export.silenced():
        onnx_graph.write_fp32(folder, tmp_path / "plain.onnx")
        onnx_graph.write_smoothed(tmp_path / "plain.onnx", tmp_path / "smoothed.onnx", rows)
    files = [tmp_path / name for name in ("plain.onnx", "smoothed.onnx")]
    before, after = map(kinds_in, files)
    assert after["Abs"] - before["Abs"] == 4  # one a layer: gated units give values far below zero
    plain, smoothed = (OnnxModel(file).logits(rows) for file in files)
    assert smoothed == pytest.approx(plain, abs=1e-4)
    exact = Router.load(folder, backend="torch").score([*PROMPTS, LONG])
    assert Router.load(folder, backend="onnx").score([*PROMPTS, LONG]) == pytest.approx(exact, abs=0.03)
