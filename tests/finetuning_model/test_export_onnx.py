"""The ONNX file of a checkpoint: int8 where the scores stay, else fp32, and never at the cost of the checkpoint."""

import json
import shutil
import warnings

import numpy as np
import pytest
from conftest import LABELS_OF_PROMPTS, PROMPTS, save_checkpoint

from finetuning_model import export_onnx as export
from finetuning_model import onnx_graph
from router_data import INFERIOR, SUPERIOR, InputError, write_rows
from router_model import Router, RouterSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(exported_checkpoint, tmp_path):
    """A checkpoint with its ONNX file that a test may break."""
    return shutil.copytree(exported_checkpoint, tmp_path / exported_checkpoint.name)


def quietly(line: str) -> None:
    pass


def test_int8_is_what_everyone_gets_and_says_what_pytorch_says(exported_checkpoint):
    settings = RouterSettings.load(exported_checkpoint)
    router = Router.load(exported_checkpoint)
    assert settings.onnx_file == "model_int8.onnx" and router.backend == "onnx"
    exact = Router.load(exported_checkpoint, backend="torch").score(PROMPTS)
    scores = router.score(PROMPTS)
    assert np.abs(scores - exact).mean() <= export.MAX_MEAN_CHANGE
    assert ((scores >= 0.5) == (np.array(LABELS_OF_PROMPTS) == 1)).all()
    assert settings.onnx.mean_change == pytest.approx(np.abs(scores - exact).mean(), abs=1e-5)
    assert settings.onnx.export_error <= export.MAX_EXPORT_ERROR and settings.onnx.not_rewritten is None


def test_int8_that_moves_the_scores_is_not_published(copy, monkeypatch, capsys):
    write_int8 = onnx_graph.write_int8

    def crude(fp32, path, left_in_fp32):
        import onnx
        from onnx import numpy_helper

        write_int8(fp32, path, left_in_fp32)
        model = onnx.load(path)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 20]), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_graph, "write_int8", crude)
    made = export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS)
    assert made["onnx_file"] == "model.onnx" and made["scheme"] == "fp32"
    assert len(made["tried"]) == 2 and all(each["mean_change"] > export.MAX_MEAN_CHANGE for each in made["tried"])
    assert "fp32, since int8 moved the scores" in capsys.readouterr().out
    assert not (copy / "model_int8.onnx").exists()
    exact = Router.load(copy, backend="torch").score(PROMPTS)
    assert Router.load(copy).backend == "onnx"
    assert Router.load(copy).score(PROMPTS) == pytest.approx(exact, abs=1e-4)


def test_a_loss_of_auroc_alone_is_refused_and_named(copy, monkeypatch):
    compare = export.compare_to_fp32
    monkeypatch.setattr(export, "compare_to_fp32", lambda *args: compare(*args) | {"auroc_loss": 0.004})
    made = export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS, say=quietly)
    assert made["onnx_file"] == "model.onnx" and made["reason"].endswith(" on average, AUROC by -0.0040")


def test_the_comparison_measures_what_it_says():
    exact, scores = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.1, 0.6, 0.5, 0.9])
    figures = export.compare_to_fp32(exact, scores, [0, 0, 1, 1])
    assert figures["mean_change"] == pytest.approx(0.075) and figures["max_change"] == pytest.approx(0.2)
    assert figures["auroc_loss"] == pytest.approx(0.25)
    assert export.compare_to_fp32(exact, scores, [1, 1, 1, 1])["auroc_loss"] is None


def test_an_export_that_fails_costs_nothing(copy, monkeypatch, capsys):
    (copy / "model_int8.onnx").unlink()

    def fail(*args):
        raise RuntimeError("this architecture has no export\nwith a second line")

    monkeypatch.setattr(onnx_graph, "write_fp32", fail)
    made = export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["no ONNX file: RuntimeError: this architecture has no export; PyTorch serves this checkpoint"]
    assert made["onnx_file"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        router = Router.load(copy)
    assert router.backend == "torch" and router.settings.thresholds
    assert not list(copy.glob(".onnx-*"))


def test_a_failed_export_keeps_a_file_that_still_fits(copy, monkeypatch):
    monkeypatch.setattr(onnx_graph, "write_fp32", lambda *args: 1 / 0)
    export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS, say=quietly)
    assert Router.load(copy).backend == "onnx"


def test_a_checkpoint_without_its_own_validation_rows_names_the_flag(tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "older", labels=None)
    with pytest.raises(InputError, match="--validation_files"):
        export.main(["--model_save_dir", str(folder)])
    rows = tmp_path / "labelled.jsonl"
    labels = [SUPERIOR if y else INFERIOR for y in LABELS_OF_PROMPTS]
    write_rows(rows, [{"prompt": p, "label": label} for p, label in zip(PROMPTS, labels, strict=True)])
    export.main(["--model_save_dir", str(folder), "--validation_files", str(rows)])
    said = capsys.readouterr().out
    assert f"over {len(PROMPTS)} rows" in said
    assert said.splitlines()[-1] == f"next: python3 inference/run_gradio_model.py --model_save_dir {folder}"
    assert Router.load(folder).backend == "onnx"
    assert json.loads((folder / "router.json").read_text())["max_length"] == 64
