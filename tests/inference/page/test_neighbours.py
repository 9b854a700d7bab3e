"""The nearest labelled prompts: found by meaning, read from safe places only, embedded once."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.page import neighbours
from inference.page.neighbours import CACHE_FILE, LabelledPrompts, embedder, labelled_prompts
from router_data import INFERIOR, SUPERIOR, write_rows
from router_model import PREDICTIONS_FILE, Router

ROWS = {
    "what is a zorp with a vlam": SUPERIOR,
    "please open the door with the bread": INFERIOR,
    "the egg and the fish of apple": INFERIOR,
}


def test_a_prompt_finds_itself_first_and_its_like_next(router):
    labelled = LabelledPrompts(router, ROWS)
    assert labelled.nearest("what is a zorp with a vlam") == []  # not read yet
    labelled.index()
    for prompt, label in ROWS.items():
        nearest = labelled.nearest(prompt)[0]
        assert (nearest.prompt, nearest.label) == (prompt, label) and nearest.similarity == pytest.approx(1, abs=0.01)
    assert labelled.nearest("please open the door with a bread")[0].prompt == "please open the door with the bread"
    assert labelled.nearest("  ") == []


def test_the_rows_come_from_the_checkpoint_and_from_training_files_of_the_project(tmp_path):
    project, checkpoint = tmp_path / "project", tmp_path / "project" / "models" / "a"
    checkpoint.mkdir(parents=True)
    write_rows(checkpoint / PREDICTIONS_FILE, [{"prompt": "one\u2028two", "label": SUPERIOR}, {"prompt": "x", "n": 1}])
    (project / "train.jsonl").write_text(json.dumps({"prompt": "three", "label": INFERIOR}) + "\n")
    (tmp_path / "secret.jsonl").write_text(json.dumps({"prompt": "secret", "label": INFERIOR}) + "\n")
    (project / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    os.mkfifo(project / "fifo")
    files = [
        "train.jsonl",
        "../secret.jsonl",
        str(tmp_path / "secret.jsonl"),
        "link.jsonl",
        "/dev/zero",
        "fifo",
        "gone",
    ]
    (checkpoint / "run.json").write_text(json.dumps({"train_files": files}))
    assert labelled_prompts(checkpoint, project) == {"one\u2028two": SUPERIOR, "three": INFERIOR}


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path):
    (tmp_path / "secret.jsonl").write_text(json.dumps({"prompt": "secret", "label": INFERIOR}) + "\n")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / PREDICTIONS_FILE).symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "checkpoint" / "run.json").write_text('{"train_files": 5}')
    assert labelled_prompts(tmp_path / "checkpoint", tmp_path / "project") == {}


def test_a_broken_file_is_left_out_with_a_warning(tmp_path):
    (tmp_path / PREDICTIONS_FILE).write_text('{"prompt": \n')
    with pytest.warns(UserWarning, match="is not shown as labelled prompts"):
        assert labelled_prompts(tmp_path, tmp_path) == {}


def test_the_prompts_are_embedded_once_whoever_asks_first(trained_checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(trained_checkpoint, tmp_path / "models" / trained_checkpoint.name)
    router = Router.load(folder)
    embedded = []

    def counting(router):
        embed = embedder(router)
        return lambda prompts: embedded.append(len(prompts)) or embed(prompts)

    monkeypatch.setattr(neighbours, "embedder", counting)
    labelled = LabelledPrompts(router, ROWS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: labelled.index(), range(8)))
    assert embedded == [len(ROWS)] and (folder / CACHE_FILE).exists()

    again = LabelledPrompts(router, ROWS)
    again.index()
    assert embedded == [len(ROWS)]  # read from the checkpoint's folder
    assert again.nearest("what is a zorp with a vlam")[0].similarity == pytest.approx(1, abs=0.01)
    other = LabelledPrompts(router, {**ROWS, "a new one": INFERIOR})
    other.index()
    assert embedded[-1] == 4 or len(embedded) > 2  # other prompts, other vectors
    (folder / CACHE_FILE).write_bytes(b"broken")
    LabelledPrompts(router, ROWS).index()


def test_an_onnx_file_embeds_too(exported_checkpoint):
    router = Router.load(exported_checkpoint, backend="onnx")
    vectors = embedder(router)(list(ROWS))
    assert vectors.shape == (3, 32) and np.isfinite(vectors).all()
    labelled = LabelledPrompts(router, ROWS)
    labelled.index()
    assert [labelled.nearest(prompt)[0].prompt for prompt in ROWS] == list(ROWS)


def test_a_visitors_prompts_come_before_the_labelled_ones(exported_checkpoint, monkeypatch):
    router = Router.load(exported_checkpoint, backend="onnx")
    seen = []
    monkeypatch.setattr(
        router.model, "_run", lambda session, row: seen.append(router.model.is_busy) or np.zeros((1, 2))
    )
    router.decide(list(ROWS))
    assert seen == [True] * len(ROWS) and not router.model.is_busy

    busy = iter([True, True, False])
    monkeypatch.setattr(type(router.model), "is_busy", property(lambda model: next(busy)))
    monkeypatch.setattr(neighbours, "PAUSE_SECONDS", 0)
    labelled = LabelledPrompts(router, {**ROWS, "not kept from an earlier start": INFERIOR})
    labelled.index()
    assert next(busy, None) is None and labelled.is_ready  # it asked until the router was idle
