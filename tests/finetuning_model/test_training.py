"""Training's parts: the recipe, frames drawn anew each epoch, batches of like length, learning rates by layer."""

import argparse
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EASY, HARD, random_bert, save_checkpoint, tiny_tokenizer

from finetuning_model import training
from finetuning_model.finetune_bert import parse_args
from finetuning_model.frames import Frames
from router_data import SAMPLE_FILE, InputError
from router_model import PromptEncoder


@pytest.fixture
def base(tmp_path):
    return save_checkpoint(tmp_path / "tiny-bert", model=random_bert())


def recipe(base, *flags: str, rows: int = 100) -> training.Recipe:
    from conftest import ROOT

    args = parse_args(["--train_files", str(ROOT / SAMPLE_FILE), "--hf_model_name", str(base), *flags])
    return training.Recipe.resolve(args, rows)


def test_every_default_is_resolved_and_recorded(base):
    few, many = recipe(base), recipe(base, rows=10**6)
    assert (few.freeze_layers, many.freeze_layers) == (1, 0)
    assert few.max_length == 64  # what the encoder has positions for
    assert few.base_name == "tiny-bert" and few.seeds == (0,)
    assert [name for name, value in vars(few).items() if value is None] == ["continued_from", "finder_length"]
    assert recipe(base, "--find_requests").finder_length == 64
    with pytest.raises(InputError, match="has 2 layers; --freeze_layers can't be 5"):
        recipe(base, "--freeze_layers", "5")


def test_flags_win_over_defaults(base):
    chosen = recipe(base, "--freeze_layers", "0", "--frame_share", "0", "--seed", "3")
    assert (chosen.freeze_layers, chosen.frames_file, chosen.seeds) == (0, None, (3,))
    assert chosen.frame(["apple"]) == ["apple"]


def test_from_a_router_training_is_gentler_and_keeps_what_it_knows(tiny_checkpoint, base):
    chosen, fresh = recipe(tiny_checkpoint), recipe(base)
    assert (chosen.base_name, chosen.continued_from, fresh.continued_from) == ("tiny", str(tiny_checkpoint), None)
    assert chosen.learning_rate < fresh.learning_rate and chosen.head_speed < fresh.head_speed
    assert (chosen.early_stopping_patience, chosen.max_length) == (0, 64)
    assert recipe(tiny_checkpoint, "--learning_rate", "1e-3", "--max_length", "32").learning_rate == 1e-3


def test_labels_are_smoothed_and_like_prompts_drawn_for_a_router_with_few_rows_only(tiny_checkpoint, base):
    def lessons(start, rows: int, *flags: str) -> tuple[bool, int]:
        found = recipe(start, *flags, rows=rows)
        return found.smooth_labels, found.like_prompts

    assert [lessons(tiny_checkpoint, rows) for rows in (999, 1_000, 3_000, 3_001)] == [
        (True, 800), (True, 0), (True, 0), (False, 0),
    ]  # fmt: skip
    assert lessons(tiny_checkpoint, 999, "--like_prompts", "0") == lessons(base, 999) == (False, 0)


def test_a_routers_temperature_goes_into_its_head(tmp_path):
    folder = save_checkpoint(tmp_path / "r", settings={"temperature": 0.5, "max_length": 64}, model=random_bert())
    ids = torch.tensor([[2, 8, 3], [2, 9, 3]])
    expected = random_bert().eval()(ids).logits / 0.5
    assert torch.allclose(training.load_classifier(recipe(folder)).eval()(ids).logits, expected, atol=1e-5)


def framed_prompts(share: float, n: int = 200) -> training.FramedPrompts:
    encoder = PromptEncoder(tiny_tokenizer([*EASY, *HARD, "please", "with"]).backend_tokenizer, 32)
    frames = Frames(["please $prompt", "$prompt with the zorp"])
    return training.FramedPrompts(["apple"] * n, np.linspace(0, 1, n), encoder, frames, share, seed=1)


def test_a_share_of_the_prompts_stands_in_frames_drawn_anew_each_epoch():
    rows = framed_prompts(0.5)
    first = [tuple(row) for row in rows.ids]
    bare = min(first, key=len)
    assert 60 < sum(row != bare for row in first[:200]) < 140
    rows.set_epoch(1)
    assert [tuple(row) for row in rows.ids] != first
    rows.set_epoch(0)
    assert [tuple(row) for row in rows.ids] == first
    assert rows[3]["labels"] == pytest.approx(3 / 199)


def test_a_short_prompt_comes_bare_as_well_and_a_long_one_does_not():
    encoder = PromptEncoder(tiny_tokenizer([*EASY, "please"]).backend_tokenizer, 64)
    prompts = ["apple", "apple " * 40, "bread door"]
    rows = training.FramedPrompts(prompts, np.array([0.1, 0.2, 0.3]), encoder, Frames(["please $prompt"]), 1, seed=1)
    short = [row.ids for row in encoder.encode(["apple", "bread door"])]
    assert len(rows) == 5 and rows.ids[3:] == short != [rows.ids[0], rows.ids[2]]
    assert [rows[i]["labels"] for i in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.3])
    bare = training.FramedPrompts(prompts, np.array([0.1, 0.2, 0.3]), encoder, None, 0, seed=1)
    assert len(bare) == 3


@pytest.mark.parametrize(
    ("framed", "inside"),
    [
        ("please apple bread door with zorp", "apple bread door"),
        ('{"zorp": "apple bread door"}', "apple bread door"),
        ('{"prompt": "apple bread door", "zorp": 1}', "[CLS] apple bread door [SEP]"),  # request_text reads no other
        ("please Apple bread door", "[CLS] please apple bread door [SEP]"),  # not word for word
    ],
)
def test_the_tokens_of_a_prompt_are_told_from_those_of_its_frame(framed, inside):
    encoder = PromptEncoder(tiny_tokenizer([*EASY, "please", "with", "zorp"]).backend_tokenizer, 64)
    ids, found = training.locate(encoder, framed, "apple bread door")
    words = map(encoder.tokenizer.id_to_token, ids)
    assert " ".join(word for word, is_prompt in zip(words, found, strict=True) if is_prompt) == inside


def test_attention_to_a_frame_costs_and_without_frames_nothing_does():
    model = random_bert()
    model.set_attn_implementation("eager")

    def loss(inside: list[float], frames_file: str | None = "frames.txt") -> float:
        inputs = {
            "input_ids": torch.tensor([[2, 8, 9, 3]]),
            "attention_mask": torch.ones(1, 4, dtype=torch.int64),
            "labels": torch.tensor([0.5]),
            "inside": torch.tensor([inside]),
        }
        trainer = SimpleNamespace(recipe=SimpleNamespace(frames_file=frames_file), prior=0.5)
        return training.RouterTrainer.compute_loss(trainer, model.train(), inputs).item()

    bare = loss([1, 1, 1, 1])
    assert bare < loss([1, 1, 0, 1]) < loss([1, 0, 0, 1])
    assert loss([1, 0, 0, 1], frames_file=None) == pytest.approx(bare)


def test_batches_hold_rows_of_like_length_in_a_new_order_each_epoch():
    lengths = [random.Random(i).randint(1, 200) for i in range(1000)]

    class Rows(list):
        ids = property(lambda self: self)
        set_epoch = staticmethod(lambda epoch: None)

    rows = Rows([0] * length for length in lengths)
    sampler = training.LengthGroupedSampler(rows, batch_size=10, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(1000)) and first != second
    spread = [np.ptp([lengths[j] for j in first[i : i + 10]]) for i in range(0, 1000, 10)]
    assert np.mean(spread) < 10


def test_the_head_learns_fastest_and_norms_do_not_decay():
    groups = training.parameter_groups(random_bert(), learning_rate=1.0, layer_decay=0.5, head_speed=4)
    rates = {group["lr"] for group in groups}
    assert rates == {4.0, 1.0, 0.5, 0.25}
    assert all((group["weight_decay"] > 0) == (group["params"][0].ndim >= 2) for group in groups)


def test_a_bias_moves_the_superior_logit_of_every_prompt():
    model = random_bert().eval()
    ids = torch.tensor([[2, 8, 3], [2, 9, 3]])
    before = model(ids).logits
    assert training.add_logit_bias(model, 0.7) == 0.7
    assert torch.allclose(model(ids).logits, before + torch.tensor([0.0, 0.7]), atol=1e-6)


@pytest.mark.slow
def test_an_encoder_that_cannot_be_had_is_named():
    with pytest.raises(InputError, match="no-such-org/none can't be had.*--hf_model_name"):
        training.Recipe.resolve(argparse.Namespace(hf_model_name="no-such-org/none"), 10)


def write_state(folder, step: int, best: str | None = None):
    """A state of the Trainer, as it stands on the disk."""
    from safetensors.numpy import save_file

    state = folder / f"checkpoint-{step}"
    state.mkdir(parents=True)
    record = {"global_step": step, "best_model_checkpoint": best and f"an/older/place/{best}"}
    (state / "trainer_state.json").write_text(json.dumps(record))
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"step": torch.ones(300)}, state / name)
    save_file({"weight": np.ones(300, np.float32)}, state / "model.safetensors")
    return state


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 0.6, None])
def test_a_torn_state_is_passed_over_for_the_one_before(tmp_path, name, size):
    before, torn = write_state(tmp_path, 9), write_state(tmp_path, 10)
    assert training.newest_trainer_state(tmp_path) == torn
    whole = (torn / name).read_bytes()
    (torn / name).unlink()
    if size is not None:
        (torn / name).write_bytes(whole[: int(size * len(whole))])
    with pytest.warns(UserWarning, match=r"checkpoint-10 is not whole \(.*is passed over") as warned:
        assert training.newest_trainer_state(tmp_path) == before
    assert len(warned) == 1 and "\n" not in str(warned[0].message)


def test_a_state_whose_best_weights_are_torn_is_of_no_use(tmp_path):
    best = write_state(tmp_path, 9)
    state = write_state(tmp_path, 10, best="checkpoint-9")
    assert training.newest_trainer_state(tmp_path) == state
    (best / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is not whole"):
        assert training.newest_trainer_state(tmp_path) is None
