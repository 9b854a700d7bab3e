"""What a router has to beat."""

import numpy as np
import pytest

from finetuning_model.evaluation import baselines


def test_category_means_use_only_what_they_say():
    scores = baselines.category_mean(["a", "a", "b"], np.array([1.0, 0.0, 0.2]), ["b", "a", "c"])
    assert scores == pytest.approx([0.2, 0.5, 0.4])
    names, gain = ["a", "b"] * 10, np.arange(20.0)
    before = baselines.category_gain_of_other_half(names, gain)
    for i in range(20):  # a row's own gain never reaches its own score
        changed = gain.copy()
        changed[i] += 100
        assert baselines.category_gain_of_other_half(names, changed)[i] == before[i]


def test_without_training_rows_only_untrained_baselines_are_scored():
    scores = baselines.baseline_scores([], np.array([]), ["one", "three"])
    assert set(scores) == {"always inferior", "always superior", "random", "prompt length"}
    assert scores["prompt length"].tolist() == [3, 5]


def test_the_baselines_on_embeddings_learn_from_at_most_so_many_rows():
    asked = []

    def embed(prompts):
        asked.append(list(prompts))
        return np.eye(4)[[len(prompt) % 4 for prompt in prompts]]

    prompts = ["easy " * (1 + i % 3) for i in range(30)]
    soft_labels = np.array([0.1 + 0.4 * (i % 3) for i in range(30)])
    scores = baselines.baseline_scores(prompts, soft_labels, ["easy"], embed, most_embedded=12)
    assert [len(texts) for texts in asked] == [12, 1] and "embeddings + nearest neighbours" in scores
    baselines.baseline_scores(prompts, soft_labels, ["easy"], embed)
    assert len(asked[2]) == 30
