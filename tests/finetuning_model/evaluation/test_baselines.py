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


def test_a_soft_label_is_drawn_to_those_of_its_neighbours():
    draw = np.random.default_rng(0)
    side = np.repeat([0, 1], 40)
    vectors = np.eye(2, 8)[side] + 0.1 * draw.normal(size=(80, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    soft_labels = np.where(side == 1, 0.9, 0.1)
    soft_labels[5] = 0.9  # one that contradicts its neighbours
    smooth = baselines.knn_smooth_targets(soft_labels, vectors, 0.5)
    assert smooth[5] < 0.6 and smooth[40:].min() > 0.8 and np.delete(smooth[:40], 5).max() < 0.2
    np.testing.assert_allclose(baselines.knn_smooth_targets(soft_labels, vectors, 0), soft_labels)
    unrelated = baselines.knn_smooth_targets(soft_labels, vectors[draw.permutation(80)], 1.0)
    assert np.std(unrelated) < 0.5 * np.std(soft_labels)  # neighbours that say nothing leave the mean
