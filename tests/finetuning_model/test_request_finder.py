"""What finds a request in its frame: trained on a tiny BERT, exported, kept by a router that training goes on from."""

import argparse
import random
import shutil
from types import SimpleNamespace

import pytest
from conftest import EASY, HARD, random_bert, save_checkpoint, tiny_tokenizer

from finetuning_model import finetune_bert, request_finder
from finetuning_model.encoders import load_tokenizer
from finetuning_model.training import Recipe
from router_data import InputError
from router_model import REQUEST_FINDER_FILE, PromptEncoder, Router

pytestmark = pytest.mark.slow

ALONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finder that learnt that EASY words are requests and HARD ones frames."""
    folder = tmp_path_factory.mktemp("finder")
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(EASY, k=draw.randint(3, 8))) for _ in range(600)]
    frames = folder / "frames.txt"
    first, second, *_ = HARD
    around = (f"{first} {second} $prompt", f"{second} $prompt {first} {first}", f"$prompt {second} {first}")
    frames.write_text("\n====\n".join(around))
    base = save_checkpoint(folder / "tiny-bert", model=random_bert())
    flags = [
        *("--train_files", __file__, "--hf_model_name", str(base), "--frames", str(frames), "--find_requests"),
        *("--max_length", "32", "--per_device_train_batch_size", "8"),
    ]
    args = finetune_bert.parse_args(flags)
    recipe = Recipe.resolve(args, len(prompts))
    data = SimpleNamespace(train=SimpleNamespace(prompts=prompts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_finder, "LEARNING_RATE", 5e-3)
        patch.setattr(request_finder, "HEAD_LEARNING_RATE", 1e-2)
        finder = finetune_bert.request_finder(recipe, load_tokenizer(str(base)), data, folder, ALONE)
    return folder, args, data, finder


def test_it_finds_the_request(made):
    _, _, _, finder = made
    encoder = PromptEncoder(tiny_tokenizer([*EASY, *HARD]).backend_tokenizer, 32)
    first, second, *_ = HARD
    framed = [f"{first} {second} apple bread door", f"apple bread door {second} {first}", "apple bread door"]
    rows = [row.ids for row in encoder.encode(framed)]
    requests = [
        encoder.alone(row, encoder.span_of_request(log_odds[0, :, 0]))
        for row, log_odds in zip(rows, finder.outputs(rows), strict=True)
    ]
    assert requests == [rows[2]] * 3


def test_a_file_that_finds_nothing_is_named(exported_checkpoint, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(exported_checkpoint, folder)
    shutil.copy(folder / "model_int8.onnx", folder / REQUEST_FINDER_FILE)
    with pytest.raises(InputError, match="can't score a prompt"):
        Router.load(folder)


def test_a_router_that_training_goes_on_from_keeps_its_own(made, tmp_path):
    folder, args, data, _ = made
    recipe = argparse.Namespace(continued_from=str(folder), find_requests=True)
    (tmp_path / "new").mkdir()
    finder = finetune_bert.request_finder(recipe, None, data, tmp_path / "new", ALONE)
    assert (tmp_path / "new" / REQUEST_FINDER_FILE).read_bytes() == (folder / REQUEST_FINDER_FILE).read_bytes()
    assert finder.outputs([[2, 3]])[0].shape == (1, 2, 1)


def test_from_a_router_without_one_it_is_trained_where_it_is_asked_for(made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(request_finder, "train_request_finder", lambda *_: asked.append("trained"))
    monkeypatch.setattr(request_finder, "export_request_finder", lambda *_: asked.append("exported"))
    for find_requests in (False, True):
        recipe = argparse.Namespace(continued_from=str(tmp_path), find_requests=find_requests)
        assert finetune_bert.request_finder(recipe, None, made[2], tmp_path, ALONE) is None
    assert asked == ["trained", "exported"]


def test_without_the_flag_there_is_none(made, tmp_path):
    args = argparse.Namespace(**vars(made[1]) | {"find_requests": False})
    assert Recipe.resolve(args, 600).finder_length is None
    assert Recipe.resolve(made[1], 600).finder_length == 2 * args.max_length
    recipe = argparse.Namespace(continued_from=None, find_requests=False)
    assert finetune_bert.request_finder(recipe, None, None, tmp_path, ALONE) is None
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_costs_no_run(made, tmp_path, monkeypatch, capsys):
    _, args, data, _ = made
    recipe = Recipe.resolve(args, 600)

    def broken(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(request_finder, "train_request_finder", lambda *_: None)
    monkeypatch.setattr(request_finder, "export_request_finder", broken)
    assert finetune_bert.request_finder(recipe, None, data, tmp_path, ALONE) is None
    assert "no request finder: RuntimeError: no such operator" in capsys.readouterr().out
