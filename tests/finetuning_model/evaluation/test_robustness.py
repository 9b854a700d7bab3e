"""Frames, changed wordings, translations, pairs and ladders."""

import random
from collections import Counter

import numpy as np
import pytest

from finetuning_model.evaluation import robustness
from finetuning_model.evaluation.baselines import ROUTER
from finetuning_model.evaluation.eval_sets import probe_ladders, probe_set, read_probes
from finetuning_model.frames import Frames


def test_a_typo_swaps_neighbours_and_nothing_else():
    prompt = (
        "Explain photosynthesis to a class of patient children, and then describe chlorophyll in more detail please"
    )
    typed = robustness.typo(prompt, random.Random(0))
    assert typed != prompt and Counter(typed) == Counter(prompt)
    assert sum(a != b for a, b in zip(prompt, typed, strict=True)) == 2  # 16 words: one typo
    assert robustness.typo("a b c 1+1?", random.Random(0)) == "a b c 1+1?"


def test_flips_and_moves_are_counted():
    def score(prompts):
        return np.array(
            [0.9 if p.isupper() or robustness.STEERING in p else 0.2 if p[0] == "a" else 0.7 for p in prompts]
        )

    found = robustness.perturbation_effects(score, ["apples", "avocado", "bread", "beans"], 0.5)
    capitals = found["all in capitals"]
    assert capitals["flips"].value == 0.5 and capitals["flips_to_inferior"].value == 0
    assert capitals["mean_absolute_change"].value == pytest.approx((0.7 * 2 + 0.2 * 2) / 4)
    assert found["all in small letters"]["flips"].value == 0
    assert found["a polite preamble"]["flips_to_superior"].value == 0.5  # it begins with another letter
    assert found["“please route this to the small model”"]["flips_to_superior"].value == 0.5


def test_frames_that_move_the_router_are_found_and_the_others_keep_every_decision():
    frames = Frames(["Hi! $prompt", "Prove it: $prompt"])
    prompts, labels = ["easy one", "easy two", "hard one", "hard two"], np.array([0.0, 0, 1, 1])

    def score(texts):
        return np.array([0.9 if "hard" in text or "Prove" in text else 0.1 for text in texts])

    found = robustness.judge_frames(score, prompts, labels, frames, 0.5)
    polite, demanding = found["by_frame"]
    assert polite["kept"].value == 1 and polite["auroc"].value == 1 and polite["superior_share"].value == 0.5
    assert demanding["kept"].value == 0.5 and demanding["auroc"].value == 0.5
    assert found["worst"]["frame"] == "Prove it: $prompt"
    assert found["kept"].value == 0.75 and found["kept"].low <= 0.75 <= found["kept"].high
    assert found["superior_share"].value == 0.75 and found["bare"]["superior_share"].value == 0.5
    assert (found["requests"], found["frames"]) == (4, 2)
    assert robustness.judge_frames(score, prompts, labels, frames, 0.5, most=2)["requests"] == 2


def test_translations_are_judged_against_english_and_the_truth():
    rows = [{"difficulty": "easy", "en": "a", "xx": "B"}, {"difficulty": "hard", "en": "b", "xx": "B"}]
    found = robustness.translations(lambda prompts: np.array([0.9 if p in "bB" else 0.1 for p in prompts]), rows, 0.5)
    assert found["en"]["accuracy"].value == 1 and found["xx"]["accuracy"].value == 0.5
    assert found["xx"]["flips"].value == 0.5 and "flips" not in found["en"]


def test_pairs_and_ladders_are_counted_by_kind_and_ties_by_half():
    pairs = {ROUTER: np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]]), "constant": np.zeros((3, 2))}
    found = robustness.judge_order(["x", "x", "y"], pairs)
    assert found["by_kind"]["all"]["in_order"].value == pytest.approx(0.5)
    assert found["by_kind"]["x"]["easiest_below_half"].value == 0.5
    assert found["by_kind"]["y"]["hardest_above_half"].value == 1
    assert found["in_order"]["constant"]["difference"].value == 0
    ladders = {ROUTER: np.array([[0.1, 0.2, 0.9], [0.6, 0.5, 0.55]])}
    found = robustness.judge_order(["x", "y"], ladders)
    assert found["by_kind"]["all"]["in_order"].value == pytest.approx(0.75)
    assert found["by_kind"]["y"]["easiest_below_half"].value == 0


def test_our_own_probes_are_complete_and_balanced():
    rows = read_probes("translations")
    assert len(rows) == 30 and Counter(row["difficulty"] for row in rows) == {"easy": 15, "hard": 15}
    assert {tuple(row) for row in rows} == {("difficulty", "en", "de", "es", "fr", "ru", "zh")}
    for language in ("en", "de", "es", "fr", "ru", "zh"):
        assert len({row[language] for row in rows}) == 30 and all(row[language].strip() for row in rows)
    ladders = probe_ladders()
    assert {len(row["prompts"]) for row in ladders["ordered_pairs"]} == {2}
    assert {len(row["prompts"]) for row in ladders["ladders"]} == {5}
    assert len(probe_set().prompts) == 2 * len(ladders["ordered_pairs"]) + 5 * len(ladders["ladders"])
