"""Going on from a router: what it came from, and which prompts it was trained on."""

import pytest
from conftest import random_bert, save_checkpoint
from made_up import made_up_rows

from finetuning_model.lineage import history, parent_router, trained_prompts
from router_data import normalise_prompt, write_json, write_rows

ROWS = made_up_rows(30)


def checkpoint(folder, files, held_out, continued_from=None):
    """A router's folder with what its training left there."""
    save_checkpoint(folder, settings={"base_model": "tiny", "max_length": 64})
    recipe = {"base": "path/of/tiny", "continued_from": continued_from and str(continued_from)}
    write_json(folder / "run.json", {"recipe": recipe, "train_files": [str(path) for path in files]})
    write_rows(folder / "predictions.jsonl", held_out[:1])
    write_rows(folder / "validation_predictions.jsonl", held_out[1:])
    return folder


def keys(rows):
    return {normalise_prompt(row["prompt"]) for row in rows}


def test_an_encoder_is_no_router(tmp_path):
    assert parent_router("bert-base-uncased") is None
    assert parent_router(str(save_checkpoint(tmp_path / "tiny-bert", model=random_bert()))) is None


def test_a_router_names_its_encoder(tmp_path):
    found = parent_router(str(checkpoint(tmp_path / "r", [], [])))
    assert (found.encoder, found.encoder_name, found.settings.max_length) == ("path/of/tiny", "tiny", 64)


def test_a_router_without_a_record_is_its_own_encoder(tiny_checkpoint):
    assert parent_router(str(tiny_checkpoint)).encoder == str(tiny_checkpoint)


def test_what_was_trained_on_over_two_turns_without_what_was_held_out(tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS[:10])
    outcomes = [{"prompt": row["prompt"], "weak_score": 0, "strong_score": 1} for row in ROWS[8:20]]
    write_rows(tmp_path / "b.jsonl", outcomes)
    first = checkpoint(tmp_path / "first", [tmp_path / "a.jsonl"], ROWS[7:10])
    second = checkpoint(tmp_path / "second", [tmp_path / "b.jsonl"], ROWS[18:20], first)
    assert [folder for folder, _ in history(second)] == [second, first]
    assert trained_prompts(first) == keys(ROWS[:7])
    assert trained_prompts(second) == keys([*ROWS[:7], *ROWS[8:18]])  # the second turn trained on rows 8 and 9


def test_a_file_that_is_gone_is_warned_of(tmp_path):
    folder = checkpoint(tmp_path / "r", [tmp_path / "gone.jsonl"], [])
    with pytest.warns(UserWarning, match="gone.jsonl is missing.*rows that it knows may judge"):
        assert trained_prompts(folder) == set()


def test_a_circle_of_routers_ends(tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS[:3])
    folder = checkpoint(tmp_path / "r", [tmp_path / "a.jsonl"], [], tmp_path / "r")
    assert len(list(history(folder))) == 1
