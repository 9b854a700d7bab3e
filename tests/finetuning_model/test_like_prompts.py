"""What few rows say of prompts like theirs: a Gaussian process around the router's own word."""

import numpy as np
import pytest

from finetuning_model.labelled_rows import Split, TrainingData
from finetuning_model.like_prompts import MAX_CHARACTERS, corrected, form_of, meaning_and_form, rows_to_learn
from router_data import INFERIOR, SAMPLE_FILE, SUPERIOR, LabelledPrompt, label_of, read_rows


def about(topics: np.ndarray, seed: int = 0) -> np.ndarray:
    """Unit vectors near one of a few directions, one a topic."""
    vectors = np.eye(16)[topics] + 0.1 * np.random.default_rng(seed).normal(size=(len(topics), 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_prompts_take_after_rows_on_their_topic():
    topics = np.arange(90) % 3
    labels = np.array([0.1, 0.5, 0.9])[topics]
    margins = np.random.default_rng(1).normal(size=90)
    found = corrected(margins, labels, about(topics), np.zeros(3), about(np.arange(3), seed=2))
    assert found == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_rows_without_a_pattern_leave_the_routers_order():
    draw = np.random.default_rng(0)
    margins, others = draw.normal(size=200), np.linspace(-3, 3, 40)
    labels = (draw.random(200) < 1 / (1 + np.exp(-2 * margins))).astype(float)
    found = corrected(margins, labels, about(draw.integers(0, 16, 200)), others, about(draw.integers(0, 16, 40)))
    assert np.corrcoef(found.argsort().argsort(), np.arange(40))[0, 1] > 0.97


@pytest.mark.parametrize(("labels", "margins"), [([0.0, 0.0], [0.0, 0.0]), ([1.0, 1.0], [5.0, 5.0]), ([0.5], [1e6])])
def test_constant_or_single_rows_give_probabilities(labels, margins):
    topics = np.arange(len(labels))
    found = corrected(
        np.array(margins), np.array(labels), about(topics), np.array([-1e9, 1e9]), about(np.array([0, 1]))
    )
    assert 0 <= found[0] <= found[1] <= 1


class Undecided:
    """A router without a word of its own."""

    def logits(self, prompts):
        return np.zeros((len(prompts), 2))


def embed(prompts):
    """One topic: the rows that need the superior model, and questions; another: the rest."""
    return about(np.array([int("?" in p or (p.startswith("row") and int(p[4:]) % 2)) for p in prompts]))


def data_of(rows: list[LabelledPrompt], held_out: list[LabelledPrompt]) -> TrainingData:
    return TrainingData(Split(rows), Split(held_out[::2]), Split(held_out[1::2]), [], 0.5)


@pytest.fixture
def rows():
    soft_labels = np.tile([0.0, 1.0], 30)
    return [
        LabelledPrompt(prompt=f"row {i}", label=label_of(p), superior_probability=p, labelled_by="outcome_gain")
        for i, p in enumerate(soft_labels.tolist())
    ]


def test_the_samples_prompts_get_labels_from_the_rows_and_not_their_own(rows, monkeypatch):
    sample = {row.prompt: row for row in read_rows(SAMPLE_FILE, LabelledPrompt)}
    data = data_of(rows, [])
    lesson = rows_to_learn(data, 120, Undecided(), embed, seed=0)
    own, like = lesson.rows[:120], lesson.rows[120:]
    assert [row.prompt for row in own] == 2 * [row.prompt for row in rows]
    assert all(row.superior_probability < 0.1 for row in own[::2])
    assert all(row.superior_probability > 0.9 for row in own[1::2])
    assert len({row.prompt for row in like}) == len(like) == 120
    assert all(row.prompt in sample and len(row.prompt) <= MAX_CHARACTERS for row in like)
    asks = np.array(["?" in row.prompt for row in like])
    given = np.array([row.superior_probability for row in like])
    assert 5 < asks.sum() < 115 and given[asks].min() > 0.5 > given[~asks].max()  # they look unlike the rows
    assert all(row.label == label_of(row.superior_probability) for row in like)
    assert rows_to_learn(data, 120, Undecided(), embed, seed=0) == lesson
    assert data.train.soft_labels.tolist() == [0.0, 1.0] * 30  # the rows themselves stay

    monkeypatch.setattr("finetuning_model.like_prompts.form_of", lambda prompt: [0.0])
    like = rows_to_learn(data, 120, Undecided(), embed, seed=0).rows[120:]
    given = np.array([row.superior_probability for row in like])
    assert given[asks].min() > 0.8 > 0.2 > given[~asks].max()


def test_an_outcome_unlike_its_like_counts_half(rows):
    rows[0] = rows[0].model_copy(update={"superior_probability": 1.0})
    lesson = rows_to_learn(data_of(rows, []), 40, Undecided(), embed, seed=0)
    assert 0.5 < lesson.rows[0].superior_probability < 0.75  # 1 if it counted alone, below 0.5 if not at all


def test_nothing_like_a_held_out_prompt_is_learnt(rows):
    like = rows_to_learn(data_of(rows, []), 40, Undecided(), embed, seed=0).rows[-40:]
    again = rows_to_learn(data_of(rows, like[:10]), 40, Undecided(), embed, seed=0)
    assert not {row.prompt for row in again.rows} & {row.prompt for row in like[:10]}
    assert {row.prompt for row in again.rows} >= {row.prompt for row in like[10:]}


def test_without_like_prompts_the_rows_alone_lean_on_their_like(rows):
    rows[0] = rows[0].model_copy(update={"superior_probability": 1.0})
    lesson = rows_to_learn(data_of(rows, []), 0, Undecided(), embed, seed=0)
    assert [row.prompt for row in lesson.rows] == [row.prompt for row in rows]
    assert 0.5 < lesson.rows[0].superior_probability < 0.8 < 0.9 < lesson.rows[1].superior_probability


def test_prompts_of_a_log_are_learnt_instead_of_the_samples(rows):
    data = data_of(rows, [LabelledPrompt(prompt="is a held-out prompt asked for?", label=INFERIOR)] * 2)
    data.unlabelled = [f"is number {i} asked for, and by whom {'of them ' * (i % 7)}?" for i in range(50)]
    data.unlabelled += ["is a held-out prompt asked for ?"]
    lesson = rows_to_learn(data, 40, Undecided(), embed, seed=0)
    like = lesson.rows[2 * len(rows) :]
    assert 30 < len(like) <= 40 and {row.prompt for row in like} < set(data.unlabelled[:-1])
    assert all(row.superior_probability > 0.5 and row.label == SUPERIOR for row in like)  # they ask


def test_prompts_take_after_rows_of_their_form_where_the_meaning_says_nothing():
    listing = [f"Choose one of the {i}:\nA. red\nB. green\nC. blue" for i in range(20, 50)]
    asking = [f"What does article number {i} of the contract say about parking?" for i in range(20, 50)]
    others = [
        "Name one of the 77:\nA. cat\nB. mouse\nC. dog",
        "Who signed paragraph number 77 of the lease for the tenant?",
    ]
    prompts = [*listing, *asking, *others]
    features = meaning_and_form(np.tile([1.0, 0.0], (len(prompts), 1)), prompts)
    labels = np.repeat([0.9, 0.1], 30)
    found = corrected(np.zeros(60), labels, features[:60], np.zeros(2), features[60:])
    assert found[0] > 0.7 > 0.3 > found[1]


@pytest.mark.parametrize("prompt", ["", " ", "\n\n", "?", "\0", "写一首诗？", "- a\n* b\n(c) d\n12. e", "x" * 100_000])
def test_every_text_has_a_form_of_finite_figures(prompt):
    assert np.isfinite(form_of(prompt)).all() and len(form_of(prompt)) == len(form_of("another"))
    features = meaning_and_form(np.ones((1, 3)), [prompt])
    assert features.shape == (1, 3 + len(form_of(prompt))) and np.isfinite(features).all()


@pytest.mark.parametrize("text", ["A. x\nB. y", "A) x\n\nB) y", "(1) x\n  (2) y", "- x\n* y", "• x\n10. y"])
def test_lists_are_seen_however_they_are_marked(text):
    assert form_of(text)[2] == pytest.approx(np.log(3))
    assert form_of(text.replace("\n", " "))[2] < np.log(3)
