"""Judging a router: the metrics against naive definitions, thresholds, robustness, the report, the Colab notebook."""

import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import EASY, FILLER, HARD, ROOT, random_bert, save_checkpoint
from scipy.stats import spearmanr
from sklearn import metrics as sk

from finetuning_model import choose_threshold, evaluate_router, finetune_bert
from finetuning_model.evaluation import baselines, plots, robustness
from finetuning_model.evaluation import metrics as m
from finetuning_model.evaluation.eval_sets import EvaluationSet, language_of, mark_near_duplicates
from finetuning_model.evaluation.report import KNOWS_THE_TEST
from router_data import INFERIOR, SUPERIOR, InputError, LabelledPrompt, label_of, run_script, write_rows
from router_model import Router

ROUTER = "this router"


@pytest.fixture
def drawn():
    """Forty prompts with many equal scores, labels, grades and gains, and five resamples."""
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 9, 40) / 8
    y = (draw.random(40) < 0.4 + 0.3 * scores).astype(float)
    gain = draw.choice([-1.0, 0.0, 0.0, 0.5, 1.0, 1.0], 40)
    return scores, y, gain, m.bootstrap_weights(40, 5, seed=3)


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(values, weights.astype(int))


# The metrics


def test_ranking_metrics_are_scikit_learns_with_ties_and_on_every_resample(drawn):
    scores, y, _, draws = drawn
    auroc, precision = m.auroc(y)(scores, draws), m.average_precision(y)(scores, draws)
    for i, weights in enumerate(draws):
        rows = repeated(np.arange(40), weights)
        assert auroc[i] == pytest.approx(sk.roc_auc_score(y[rows], scores[rows]))
        assert precision[i] == pytest.approx(sk.average_precision_score(y[rows], scores[rows]))


def test_probability_metrics_are_the_naive_ones(drawn):
    scores, y, _, draws = drawn
    for weights in draws:
        rows = repeated(np.arange(40), weights)
        p, truth = scores[rows], y[rows]
        one = weights[None]
        assert m.accuracy(y, 0.5)(scores, one)[0] == pytest.approx(sk.accuracy_score(truth, p >= 0.5))
        assert m.brier(y)(scores, one)[0] == pytest.approx(sk.brier_score_loss(truth, p))
        error = 0.0
        for k in range(m.BINS):
            member = (p >= k / m.BINS) & ((p < (k + 1) / m.BINS) | (k == m.BINS - 1))
            if member.any():
                error += member.mean() * abs(p[member].mean() - truth[member].mean())
        assert m.expected_calibration_error(y)(scores, one)[0] == pytest.approx(error)


def test_spearman_is_scipys(drawn):
    scores, _, gain, draws = drawn
    rows = repeated(np.arange(40), draws[2])
    expected = spearmanr(scores[rows], gain[rows]).statistic
    assert m.spearman(gain)(scores, draws[2:3])[0] == pytest.approx(expected)


def pgr_in_order(gain: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(gain)]) / gain.sum()


def test_apgr_by_hand():
    scores, one = np.array([4.0, 3, 2, 1]), np.ones((1, 4))
    assert m.apgr(np.array([1.0, 1, 0, 0]))(scores, one)[0] == pytest.approx((0 + 0.5 + 1 + 1 + 1) / 5)
    assert m.apgr(np.array([0.0, 0, 1, 1]))(scores, one)[0] == pytest.approx((0 + 0 + 0 + 0.5 + 1) / 5)
    assert m.apgr(np.array([2.0, -1, 0, 1]))(scores, one)[0] == pytest.approx((0 + 1 + 0.5 + 0.5 + 1) / 5)
    assert m.apgr(np.array([2.0, -1, 0, 1]))(np.zeros(4), one)[0] == pytest.approx(0.5)


def test_apgr_with_ties_is_the_mean_over_all_their_orders():
    scores, gain = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0.0, 1, -1, 1, 1])
    weights = np.array([1.0, 2, 0, 1, 1])  # a resample: row 1 twice, row 2 never
    for draw in (np.ones(5), weights):
        rows = repeated(np.arange(5), draw)
        orders = [
            pgr_in_order(gain[list(order)]).mean()
            for order in itertools.permutations(rows)
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        assert m.apgr(gain)(scores, draw[None])[0] == pytest.approx(np.mean(orders))


def test_cpt_and_pgr_follow_the_curve_with_ties(drawn):
    scores, _, gain, draws = drawn
    calls, recovered = m.quality_curve(scores, gain)
    assert (calls[0], recovered[0], calls[-1], recovered[-1]) == (0, 0, 1, 1)
    one = np.ones((1, 40))
    for share in (0.0, 0.2, 0.37, 0.9, 1.0):
        assert m.pgr(gain, share)(scores, one)[0] == pytest.approx(np.interp(share, calls, recovered))
    for share in (0.5, 0.8):
        k = np.flatnonzero(recovered >= share)[0]
        inside = (share - recovered[k - 1]) / (recovered[k] - recovered[k - 1])
        expected = calls[k - 1] + inside * (calls[k] - calls[k - 1])
        assert m.cpt(gain, share)(scores, one)[0] == pytest.approx(expected)
    rows = repeated(np.arange(40), draws[0])
    of_draw = m.pgr(gain, 0.3)(scores, draws[:1])[0]
    assert of_draw == pytest.approx(m.pgr(gain[rows], 0.3)(scores[rows], np.ones((1, 40)))[0])


def test_no_ranking_beats_the_oracle_and_random_is_one_half(drawn):
    _, _, gain, _ = drawn
    one = np.ones((1, 40))
    oracle = m.apgr(gain)(gain, one)[0]
    randoms = [m.apgr(gain)(np.random.default_rng(i).random(40), one)[0] for i in range(400)]
    assert oracle > max(randoms)
    assert np.mean(randoms) == pytest.approx(0.5, abs=0.03)


def test_what_is_undefined_is_no_number():
    one = np.ones((1, 3))
    assert np.isnan(m.auroc(np.ones(3))(np.arange(3.0), one)[0])
    assert np.isnan(m.apgr(np.zeros(3))(np.arange(3.0), one)[0])
    figure = m.estimate(m.auroc(np.ones(3)), np.arange(3.0), m.bootstrap_weights(3, 10))
    assert np.isnan(figure.value) and np.isnan(figure.low)


def test_resamples_draw_n_prompts_and_repeat_by_seed():
    draws = m.bootstrap_weights(30, 7)
    assert draws.shape == (7, 30) and (draws.sum(1) == 30).all()
    assert (draws == m.bootstrap_weights(30, 7)).all() and (draws != m.bootstrap_weights(30, 7, seed=1)).any()


def test_compare_gives_what_estimate_and_paired_difference_give(drawn):
    scores, y, _, _ = drawn
    draws = m.bootstrap_weights(40, 200)
    compared = m.compare(m.auroc(y), {"a": scores, "b": -scores}, draws)
    assert compared["b"]["figure"] == m.estimate(m.auroc(y), -scores, draws)
    assert compared["b"]["difference"] == m.paired_difference(m.auroc(y), scores, -scores, draws)
    assert compared["a"]["difference"] is None
    same = m.compare(m.auroc(y), {"a": scores, "b": scores.copy()}, draws)["b"]["difference"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_temperature_and_shift_that_made_the_labels_are_found():
    draw = np.random.default_rng(0)
    margin = draw.normal(size=20_000) * 4
    y = (draw.random(20_000) < 1 / (1 + np.exp(-(margin - 1.5) / 2.5))).astype(float)
    assert m.fit_temperature(margin, y) == pytest.approx((2.5, -1.5), rel=0.05)


def test_the_base_rate_sets_the_mean_probability():
    draw = np.random.default_rng(0)
    margin = draw.normal(size=150)
    y = (draw.random(150) < 0.3).astype(float)
    temperature, shift = m.fit_temperature(margin, y, base_rate=0.17)
    assert np.mean(1 / (1 + np.exp(-(margin + shift) / temperature))) == pytest.approx(0.17, abs=1e-6)
    temperature, shift = m.fit_temperature(margin, np.zeros(150))  # one label only: still a finite answer
    assert np.isfinite([temperature, shift]).all()


# Baselines


def test_category_means_use_only_what_they_say():
    scores = baselines.category_mean(["a", "a", "b"], np.array([1.0, 0.0, 0.2]), ["b", "a", "c"])
    assert scores == pytest.approx([0.2, 0.5, 0.4])
    names, gain = ["a", "b"] * 10, np.arange(20.0)
    before = baselines.category_gap_of_other_half(names, gain)
    for i in range(20):  # a row's own gain never reaches its own score
        changed = gain.copy()
        changed[i] += 100
        assert baselines.category_gap_of_other_half(names, changed)[i] == before[i]


def test_without_training_rows_only_untrained_baselines_are_scored():
    scores = baselines.baseline_scores([], np.array([]), ["one", "three"])
    assert set(scores) == {"always inferior", "always superior", "random", "prompt length"}
    assert scores["prompt length"].tolist() == [3, 5]


# Thresholds


@pytest.fixture
def graded():
    draw = np.random.default_rng(5)
    scores = np.round(0.98 * draw.random(200), 2)
    return scores, np.clip(scores + draw.normal(0, 0.15, 200), 0, 1)


def quality_at(threshold: float, scores, weak, strong) -> float:
    return np.where(scores >= threshold, strong, weak).sum() / strong.sum()


def test_every_point_of_the_tradeoff_is_what_its_threshold_does(graded):
    scores, grades = graded
    strong = np.full(200, 0.9)
    curve = choose_threshold.tradeoff(scores, 1 - grades, strong)
    assert len(curve.thresholds) == len(np.unique(scores)) + 1
    for threshold, share, quality in zip(curve.thresholds, curve.superior_share, curve.quality, strict=True):
        assert np.mean(scores >= threshold) == pytest.approx(share)
        assert quality_at(threshold, scores, 1 - grades, strong) == pytest.approx(quality)


@pytest.mark.parametrize("percent", [0, 5, 20, 33.3, 100])
def test_a_budget_of_calls_is_kept_and_spent(graded, percent):
    scores, grades = graded
    curve = choose_threshold.tradeoff_of_grades(scores, grades)
    threshold = choose_threshold.choose(curve, choose_threshold.at_most_superior(percent))
    share = np.mean(scores >= threshold)
    assert share <= percent / 100 + 1e-9
    below = scores[scores < threshold]
    assert not len(below) or np.mean(scores >= below.max()) > percent / 100


@pytest.mark.parametrize("percent", [60, 90, 99, 100])
def test_a_quality_is_kept_at_the_least_cost(graded, percent):
    scores, grades = graded
    curve = choose_threshold.tradeoff_of_grades(scores, grades)
    threshold = choose_threshold.choose(curve, choose_threshold.at_least_quality(percent))
    ones = np.ones(200)
    assert quality_at(threshold, scores, 1 - grades, ones) >= percent / 100 - 1e-9
    dearer = [t for t in curve.thresholds if t > threshold]
    assert all(quality_at(t, scores, 1 - grades, ones) < percent / 100 for t in dearer)


def test_a_budget_of_money_is_the_share_of_calls_it_buys(graded):
    curve = choose_threshold.tradeoff_of_grades(*graded)
    money = choose_threshold.choose(curve, choose_threshold.at_most_cost(3.0, 11.0, 1.0))
    assert money == choose_threshold.choose(curve, choose_threshold.at_most_superior(20))


def test_targets_that_cannot_be_met_name_the_nearest_that_can(graded):
    curve = choose_threshold.tradeoff_of_grades(*graded)
    with pytest.raises(InputError, match=r"nearest that can is 1 per 1,000"):
        choose_threshold.choose(curve, choose_threshold.at_most_cost(0.5, 11.0, 1.0))
    with pytest.raises(InputError, match=r"nearest that can is 100.0% of the superior model's quality"):
        choose_threshold.choose(curve, choose_threshold.at_least_quality(101))
    budget, quality = choose_threshold.at_most_superior(10), choose_threshold.at_least_quality(99)
    with pytest.raises(InputError, match="at once") as refused:
        choose_threshold.choose(curve, budget, quality)
    best = quality_at(choose_threshold.choose(curve, budget), graded[0], 1 - graded[1], np.ones(200))
    assert f"goes with {best:.1%} of the superior model's quality" in str(refused.value)


def test_two_targets_that_can_be_met_at_once_are(graded):
    scores, grades = graded
    curve = choose_threshold.tradeoff_of_grades(scores, grades)
    both = choose_threshold.choose(curve, choose_threshold.at_most_superior(60), choose_threshold.at_least_quality(70))
    assert both == choose_threshold.choose(curve, choose_threshold.at_least_quality(70))
    assert np.mean(scores >= both) <= 0.6


def test_equal_scores_stay_together_and_a_score_of_one_cannot_be_kept_away():
    curve = choose_threshold.tradeoff_of_grades(np.array([1.0, 1.0, 0.3]), np.array([1.0, 1.0, 0.0]))
    assert curve.superior_share.tolist() == pytest.approx([2 / 3, 1])
    with pytest.raises(InputError, match="66.7%"):
        choose_threshold.choose(curve, choose_threshold.at_most_superior(50))
    with pytest.raises(InputError, match="not positive"):
        choose_threshold.tradeoff(np.array([0.5]), np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="price_superior"):
        choose_threshold.at_most_cost(1, 0.5, 0.5)


def test_the_checkpoints_thresholds_meet_their_names(graded):
    scores, grades = graded
    thresholds = choose_threshold.thresholds_for_checkpoint(scores, grades)
    assert len(thresholds) == 7 and all(type(value) is float and 0 <= value <= 1 for value in thresholds.values())
    assert np.mean(scores >= thresholds["at_most_20_percent_superior"]) <= 0.2
    assert quality_at(thresholds["at_least_95_percent_quality"], scores, 1 - grades, np.ones(200)) >= 0.95


def sentences(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Prompts of made-up words; every second one holds a word of HARD."""
    draw = random.Random(seed)
    hard = np.arange(n) % 2 == 1
    prompts = []
    for i in range(n):
        words = [*draw.choices(FILLER, k=5), *draw.choices(EASY, k=2), draw.choice(HARD if hard[i] else EASY)]
        draw.shuffle(words)
        prompts.append(" ".join([*words, f"n{seed}x{i}"]))
    return prompts, hard


@pytest.fixture
def checkpoint(trained_checkpoint, tmp_path) -> Path:
    """A copy of the trained checkpoint that says what it was trained on."""
    folder = tmp_path / "models" / trained_checkpoint.name
    shutil.copytree(trained_checkpoint, folder)
    prompts, hard = sentences(80, seed=7)
    rows = [
        {"prompt": prompt, "label": SUPERIOR if is_hard else INFERIOR, "labelled_by": "test", "category": "made up"}
        for prompt, is_hard in zip(prompts, hard, strict=True)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    base = save_checkpoint(tmp_path / "tiny-bert", model=random_bert())
    run = {"train_files": [str(tmp_path / "train.jsonl")], "arguments": {"hf_model_name": str(base)}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def write_outcomes(path: Path, n: int = 60, extra: list[str] | None = None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Outcomes in which the inferior model fails on every hard prompt and on every tenth."""
    prompts, hard = sentences(n, seed=1)
    prompts += extra or []
    hard = np.append(hard, np.zeros(len(prompts) - n, dtype=bool))
    weak = np.where(hard | (np.arange(len(prompts)) % 10 == 0), 0.0, 1.0)
    strong = np.where(np.arange(len(prompts)) % 7 == 3, 0.0, 1.0)
    rows = [
        {"prompt": prompt, "group": "even" if i % 4 < 2 else "odd", "weak_score": a, "strong_score": b}
        for i, (prompt, a, b) in enumerate(zip(prompts, weak, strong, strict=True))
    ]
    write_rows(path, rows)
    return prompts, weak, strong


def test_choosing_on_outcomes_writes_router_json(checkpoint, tmp_path, capsys):
    prompts, weak, strong = write_outcomes(tmp_path / "mine.jsonl")
    arguments = ["--model_save_dir", str(checkpoint), "--prompts", str(tmp_path / "mine.jsonl")]
    choose_threshold.main([*arguments, "--at_most_superior", "30", "--save"])
    router = Router.load(checkpoint)
    scores = router.score(prompts)
    assert 0.2 < np.mean(scores >= router.settings.threshold) <= 0.3
    assert router.settings.thresholds["at_most_30_percent_superior"] == router.settings.threshold
    assert router.settings.thresholds["at_most_10_percent_superior"] == 0.95  # what was there is kept
    assert router.settings.base_model == "tiny" and router.settings.max_length == 64
    printed = capsys.readouterr().out
    assert "measured on outcomes" in printed and "random" in printed
    assert f"{quality_at(router.settings.threshold, scores, weak, strong):.1%} [" in printed

    choose_threshold.main([*arguments, "--at_most_superior", "40", "--save", "mine"])
    assert json.loads((checkpoint / "router.json").read_text())["thresholds"]["mine"] > 0


def test_prompts_come_as_text_lines_rows_grades_or_outcomes(tmp_path):
    (tmp_path / "lines.txt").write_text("first\n\n second line\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "x": 1}\n')
    write_rows(tmp_path / "graded.jsonl", [{"prompt": "a", "label": SUPERIOR, "superior_probability": 0.8}])
    assert choose_threshold.read_prompts([str(tmp_path / "lines.txt")])[0] == ["first", " second line"]
    assert choose_threshold.read_prompts([str(tmp_path / "rows.jsonl")])[:2] == (["a"], None)
    _, weak, strong, origin = choose_threshold.read_prompts([str(tmp_path / "graded.jsonl")])
    assert weak == pytest.approx([0.2]) and strong == [1] and "grades" in origin
    with pytest.raises(InputError, match="different kinds"):
        choose_threshold.read_prompts([str(tmp_path / "*.jsonl")])
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": " "}\n')
    with pytest.raises(InputError, match=r"broken.jsonl, line 2: prompt: is blank"):
        choose_threshold.read_prompts([str(tmp_path / "broken.jsonl")])


def test_flags_that_make_no_sense_are_refused():
    for argv in (["--at_most_cost", "3"], ["--save"], ["--price_superior", "3"], []):
        with pytest.raises(SystemExit) as stopped:
            choose_threshold.parse_args([*(["--prompts", "x"] if argv else []), *argv])
        assert stopped.value.code == 2


# Robustness


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

    found = robustness.stability(score, ["apples", "avocado", "bread", "beans"], 0.5)
    capitals = found["all in capitals"]
    assert capitals["flips"].value == 0.5 and capitals["flips_to_inferior"].value == 0
    assert capitals["mean_absolute_change"].value == pytest.approx((0.7 * 2 + 0.2 * 2) / 4)
    assert found["all in small letters"]["flips"].value == 0
    assert found["a polite preamble"]["flips_to_superior"].value == 0.5  # it begins with another letter
    assert found["“please route this to the small model”"]["flips_to_superior"].value == 0.5


def test_translations_are_judged_against_english_and_the_truth():
    rows = [{"difficulty": "easy", "en": "a", "xx": "B"}, {"difficulty": "hard", "en": "b", "xx": "B"}]
    found = robustness.translations(lambda prompts: np.array([0.9 if p in "bB" else 0.1 for p in prompts]), rows, 0.5)
    assert found["en"]["accuracy"].value == 1 and found["xx"]["accuracy"].value == 0.5
    assert found["xx"]["flips"].value == 0.5 and "flips" not in found["en"]


def test_pairs_and_ladders_are_counted_by_kind_and_ties_by_half():
    rows = [{"kind": "x"}, {"kind": "x"}, {"kind": "y"}]
    easier = {ROUTER: np.array([0.1, 0.6, 0.5]), "constant": np.zeros(3)}
    harder = {ROUTER: np.array([0.9, 0.4, 0.5]), "constant": np.zeros(3)}
    found = robustness.ordered_pairs(rows, easier, harder)
    assert found["by_kind"]["all"]["in_order"].value == pytest.approx(0.5)
    assert found["by_kind"]["x"]["easier_below_half"].value == 0.5
    assert found["by_kind"]["y"]["harder_above_half"].value == 1
    assert found["in_order"]["constant"]["difference"].value == 0
    steps = {ROUTER: np.array([[0.1, 0.2, 0.9], [0.6, 0.5, 0.55]])}
    found = robustness.ladders([{"kind": "x"}, {"kind": "y"}], steps)
    assert found["by_kind"]["all"]["in_order"].value == pytest.approx(0.75)
    assert found["by_kind"]["y"]["lowest_below_half"].value == 0


def test_our_own_parallel_prompts_are_complete_and_balanced():
    rows = [json.loads(line) for line in (robustness_folder() / "translations.jsonl").open(encoding="utf-8")]
    assert len(rows) == 30 and Counter(row["difficulty"] for row in rows) == {"easy": 15, "hard": 15}
    assert {tuple(row) for row in rows} == {("difficulty", "en", "de", "es", "fr", "ru", "zh")}
    for language in ("en", "de", "es", "fr", "ru", "zh"):
        assert len({row[language] for row in rows}) == 30 and all(row[language].strip() for row in rows)


def robustness_folder() -> Path:
    return Path(finetune_bert.__file__).parent / "probes"


# The report


@pytest.fixture(scope="module")
def report(trained_checkpoint, tmp_path_factory):
    """One whole evaluation: outcomes with two near duplicates of training rows, labelled rows, questions, prices."""
    folder = tmp_path_factory.mktemp("evaluation")
    saved = folder / "models" / trained_checkpoint.name
    shutil.copytree(trained_checkpoint, saved)
    train_prompts, hard = sentences(80, seed=7)
    labels = [SUPERIOR if is_hard else INFERIOR for is_hard in hard]
    rows = [
        {"prompt": prompt, "label": label, "labelled_by": "test", "category": "even"}
        for prompt, label in zip(train_prompts, labels, strict=True)
    ]
    write_rows(folder / "train.jsonl", rows)
    base = save_checkpoint(folder / "tiny-bert", model=random_bert())
    run = {"train_files": [str(folder / "train.jsonl")], "arguments": {"hf_model_name": str(base)}}
    (saved / "run.json").write_text(json.dumps(run))
    copies = [train_prompts[0].upper(), train_prompts[2] + "!"]
    outcomes = write_outcomes(folder / "mine.jsonl", extra=copies)
    prompts, is_hard = sentences(30, seed=2)
    graded = [
        {"prompt": prompt, "label": label_of(grade), "superior_probability": grade}
        for prompt, grade in zip(prompts, np.where(is_hard, 0.8, 0.3), strict=True)
    ]
    write_rows(folder / "graded.jsonl", graded)
    questions = [
        {
            **{"prompt": prompt, "label": SUPERIOR if h else INFERIOR, "question_id": i, "category": "writing"},
            **{"turns": [prompt], "superior_wins": 9, "inferior_wins": 1, "ties": 0, "difficulty_rank": i + 1},
            **{"inferior_ratio": 0.1 if h else 0.6, "inferior_ratio_low": 0, "inferior_ratio_high": 1},
            "in_labelling_prompt": i < 4,
        }
        for i, (prompt, h) in enumerate(zip(*sentences(16, seed=3), strict=True))
    ]
    write_rows(folder / "questions.jsonl", questions)
    evaluate_router.main(
        [
            *("--model_save_dir", str(saved), "--outcomes", str(folder / "mine.jsonl")),
            *("--labelled", str(folder / "graded.jsonl"), "--questions_file", str(folder / "questions.jsonl")),
            *("--price_superior", "10", "--price_inferior", "1"),
        ]
    )
    made = saved / "evaluation"
    return saved, json.loads((made / "evaluation.json").read_text()), (made / "evaluation.md").read_text(), outcomes


def test_figures_on_outcomes_are_those_of_the_scores(report):
    saved, evaluation, _, (prompts, weak, strong) = report
    scores = Router.load(saved).score(prompts)
    mine = evaluation["sets"][0]
    fails, gains = mine["targets"]
    assert "fails" in fails["target"] and "gains" in gains["target"]
    auroc = fails["metrics"]["AUROC"][ROUTER]["figure"]
    near = 0.005  # batches of other lengths round a score's last digit otherwise, which may part a tie
    assert auroc["value"] == pytest.approx(sk.roc_auc_score(weak < 0.5, scores), abs=near)
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    of_gains = gains["metrics"]["AUROC"][ROUTER]["figure"]["value"]
    assert of_gains == pytest.approx(sk.roc_auc_score(strong > weak, scores), abs=near)
    apgr = mine["curve"]["APGR"]
    expected = m.apgr(strong - weak)(scores, np.ones((1, 62)))[0]
    assert apgr[ROUTER]["figure"]["value"] == pytest.approx(expected, abs=near)
    assert apgr["always superior"]["figure"]["value"] == pytest.approx(0.5)
    assert apgr["random"]["difference"]["low"] > 0  # the router knows the hard words
    half = mine["curve"]["CPT(50)"][ROUTER]["figure"]["value"]
    assert mine["curve"]["cost at CPT(50)"][ROUTER]["figure"]["value"] == pytest.approx(1 + 9 * half)
    at = mine["at_threshold"]
    assert at["superior_calls"]["value"] == pytest.approx(np.mean(scores >= 0.5))
    assert at["cost"] == pytest.approx(1 + 9 * np.mean(scores >= 0.5))
    assert at["quality"]["value"] == pytest.approx(quality_at(0.5, scores, weak, strong))
    confusion = fails["confusion"]
    assert confusion[SUPERIOR][SUPERIOR] == int(((weak < 0.5) & (scores >= 0.5)).sum())


def test_every_baseline_stands_beside_the_router_in_the_same_run(report):
    _, evaluation, text, _ = report
    named = {"always inferior", "always superior", "random", "majority", "prompt length", "category's mean"}
    named |= {"TF-IDF + logistic regression", "embeddings + logistic regression", "embeddings + nearest neighbours"}
    scorers = evaluation["sets"][0]["curve"]["APGR"]
    assert set(scorers) == {ROUTER, KNOWS_THE_TEST, *named}
    assert all(entry["difference"] is not None for name, entry in scorers.items() if name != ROUTER)
    assert all(f"| {name} |" in text for name in named)
    assert "prompt length" not in evaluation["sets"][0]["targets"][0]["metrics"]["Brier score"]


def test_near_duplicates_of_training_rows_are_counted_and_left_out_for_comparison(report):
    _, evaluation, text, (prompts, weak, strong) = report
    mine, graded, _ = evaluation["sets"]
    assert mine["near_duplicates"] == 2 and mine["without_near_duplicates"]["rows"] == 60
    assert "2 of the 62 prompts of mine are near duplicates of training rows" in text
    assert graded["near_duplicates"] == 0
    each = EvaluationSet("x", "", ["the door is a door"], {}, [], [])
    mark_near_duplicates([each], [LabelledPrompt(prompt="fish and bread with the apple", label=INFERIOR)])
    assert not each.near_duplicates.any()


def test_labelled_rows_and_questions_are_judged_on_their_grades(report):
    _, evaluation, text, _ = report
    _, graded, questions = evaluation["sets"]
    assert graded["rows"] == 30 and "curve" not in graded
    assert graded["targets"][0]["superior_share"] == 0.5
    assert questions["rows"] == 12  # four were shown to the labeller
    rho = questions["human_preference"]["Spearman's ρ with the human preference"][ROUTER]["figure"]["value"]
    assert rho > 0.7 and "Rank correlation with the human votes" in text


def test_buckets_and_misses(report):
    saved, evaluation, text, (prompts, weak, _) = report
    mine = evaluation["sets"][0]
    assert {bucket["name"] for bucket in mine["by"]["category"]} == {"even", "odd"}
    assert [bucket["name"] for bucket in mine["by"]["language"]] == ["Latin script"]
    assert sum(bucket["rows"] for bucket in mine["by"]["length in characters"]) == 62
    scores = Router.load(saved).score(prompts)
    wrong = (scores >= 0.5) != (weak < 0.5)
    assert len(mine["misses"]) == min(20, wrong.sum()) > 0
    distances = [abs(miss["superior_probability"] - (miss["weak_score"] < 0.5)) for miss in mine["misses"]]
    assert distances == sorted(distances, reverse=True)
    assert mine["misses"][0]["prompt"] in {prompt for prompt, is_wrong in zip(prompts, wrong, strict=True) if is_wrong}


def test_plots_probes_and_robustness_are_there(report):
    saved, evaluation, text, _ = report
    for each in evaluation["sets"]:
        for plot in each["plots"]:
            assert (saved / "evaluation" / plot).read_bytes().startswith(b"\x89PNG") and f"({plot})" in text
    assert evaluation["sets"][0]["plots"][0] == "mine_cost_quality.png"
    assert evaluation["probes"]["ordered_pairs"]["pairs"] == 150 and evaluation["probes"]["ladders"]["ladders"] == 40
    assert "TF-IDF + logistic regression" in evaluation["probes"]["ordered_pairs"]["in_order"]
    found = evaluation["robustness"]
    assert set(found["translations"]) == {"en", "de", "es", "fr", "ru", "zh"} and len(found["perturbations"]) == 5
    assert "ordered pairs" in text and "## Robustness" in text


def test_the_report_is_well_formed_markdown(report):
    _, _, text, _ = report
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.sub(r"\\\|", "", line).split("|")) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_with_no_files_the_checkpoints_own_test_part_is_judged(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_router.main(["--output_dir", str(tmp_path / "out")])
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (own,) = evaluation["sets"]
    assert (own["name"], own["rows"], evaluation["train_rows"]) == ("test_part", 2, 80)
    assert "test_part (2 prompts): AUROC" in capsys.readouterr().out


def test_what_cannot_be_had_is_said_in_one_line(checkpoint, tmp_path, capsys):
    write_outcomes(tmp_path / "mine.jsonl", 20)
    arguments = ["--model_save_dir", str(checkpoint), "--outcomes", str(tmp_path / "mine.jsonl")]
    evaluate_router.main([*arguments, "--hf_model_name", str(tmp_path / "nowhere"), "--limit", "12"])
    evaluation = json.loads((checkpoint / "evaluation" / "evaluation.json").read_text())
    assert evaluation["sets"][0]["rows"] == 12
    assert "embeddings + logistic regression" not in evaluation["sets"][0]["curve"]["APGR"]
    assert "warning: no baselines on embeddings" in capsys.readouterr().out
    (tmp_path / "train.jsonl").unlink()
    evaluate_router.main(arguments)
    assert "no trained baselines" in capsys.readouterr().out


def test_errors_are_one_line(checkpoint, tmp_path, capsys):
    write_outcomes(tmp_path / "mine.jsonl", 20)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "weak_score": 1, "strong_score": 1}\n{"prompt": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    mine = ["--outcomes", str(tmp_path / "mine.jsonl")]
    for argv, expected in (
        (["--model_save_dir", str(tmp_path / "none"), *mine], "no model folder at"),
        (["--outcomes", str(tmp_path / "none.jsonl")], "no such file"),
        (["--outcomes", str(tmp_path / "broken.jsonl")], "broken.jsonl, line 2: weak_score"),
        (["--outcomes", str(tmp_path / "empty.jsonl")], "empty holds no prompts"),
        ([*mine, "--train_files", str(tmp_path / "none.jsonl")], "no such file"),
    ):
        argv = argv if "--model_save_dir" in argv else ["--model_save_dir", str(checkpoint), *argv]
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda argv=argv: evaluate_router.main(argv))
        assert stopped.value.code == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and expected in error.splitlines()[-1]
    with pytest.raises(SystemExit):
        evaluate_router.parse_args(["--price_superior", "1"])


def test_the_language_is_the_rows_own_or_the_script_of_its_letters():
    row = LabelledPrompt(prompt="Hello", label=INFERIOR, language="German")
    assert language_of(row) == "German"
    for prompt, script in (
        ("Привет world мир", "Cyrillic script"),
        ("你好", "Cjk script"),
        ("1 + 1 = ?", "no letters"),
    ):
        assert language_of(LabelledPrompt(prompt=prompt, label=INFERIOR)) == script


@pytest.mark.parametrize("script", ["choose_threshold.py", "evaluate_router.py"])
def test_help_loads_nothing_heavy(script):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'finetuning_model' / script)!r}, run_name='__main__')\n"
        f"except SystemExit: pass\n"
        f"print(sorted({{'torch', 'transformers', 'datasets', 'gradio'}} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith("[]") and "Example:" in printed


def test_plots_stand_odd_input(tmp_path):
    one_group = {"only": np.ones(3, dtype=bool), "none": np.zeros(3, dtype=bool)}
    plots.score_histogram(tmp_path / "a.png", np.array([0.0, 0.5, 1.0]), one_group, 0.5)
    plots.reliability(tmp_path / "b.png", np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    plots.training_curve(tmp_path / "c.png", [1.0], [0.5])
    plots.accuracy_by_category(tmp_path / "d.png", ["$x$", "b"], np.array([True, False]), np.array([1.0, 0.0]))
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in "abcd")
    low, high = plots.wilson(np.array([0.5]), np.array([10]))
    assert (low[0], high[0]) == (pytest.approx(0.2366, abs=1e-3), pytest.approx(0.7634, abs=1e-3))


# The notebook


@pytest.fixture
def cells() -> list[dict]:
    return json.loads((ROOT / "finetuning_model" / "finetune_in_colab.ipynb").read_text(encoding="utf-8"))["cells"]


PARSERS = {
    "finetuning_model/finetune_bert.py": finetune_bert,
    "finetuning_model/evaluate_router.py": evaluate_router,
}


def lines_of(cell: dict) -> list[str]:
    return "".join(cell["source"]).replace("\\\n", " ").splitlines()


def run_cell(cell: dict, names: dict, run) -> None:
    """What Colab does with a cell: Python lines are executed, `!` lines are commands with {names} filled in."""
    python = []
    for line in lines_of(cell):
        if line.startswith("!"):
            exec("\n".join(python), names)
            python = []
            run(shlex.split(line[1:].format(**names)))
        else:
            python.append(line)
    exec("\n".join(python), names)


def test_the_notebooks_commands_run_on_a_tiny_job(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts, hard = sentences(160, seed=9)
    rows = [
        {"prompt": prompt, "label": SUPERIOR if h else INFERIOR, "labelled_by": "test"}
        for prompt, h in zip(prompts, hard, strict=True)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    base = save_checkpoint(tmp_path / "tiny-bert", model=random_bert())
    commands = []

    def run(command: list[str]) -> None:
        assert command[0] == "python3"
        commands.append(command[1])
        PARSERS[command[1]].main(command[2:])

    names: dict = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tags = cell["metadata"].get("tags", [])
        if "colab" in tags:
            continue
        run_cell(cell, names, run)
        if "parameters" in tags:
            tiny = {"TRAIN_FILES": "rows.jsonl", "HF_MODEL_NAME": str(base), "OUTPUT_DIR": "out"}
            assert set(tiny) < set(names)
            names |= tiny | {"MORE_FLAGS": "--max_steps 4 --max_length 32"}
    assert commands == list(PARSERS)
    assert (Path(names["MODEL_SAVE_DIR"]) / "evaluation" / "evaluation.md").exists()


def test_every_flag_of_the_notebook_is_one_of_the_scripts(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "final-datasets").mkdir()
    (tmp_path / "final-datasets" / "router_dataset_labelled-x.jsonl").write_text("")
    names: dict = {"MODEL_SAVE_DIR": "models/x-save"}
    parsed = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        if "parameters" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
        for line in lines_of(cell):
            if line.startswith("!python3 finetuning_model/"):
                command = shlex.split(line[1:].format(**names))
                parsed.append(PARSERS[command[1]].parse_args(command[2:]))
    train, evaluate = parsed
    assert train.hf_model_name == "bert-base-uncased" and train.output_dir == "models"
    assert train.train_files == ["final-datasets/router_dataset_labelled-*.jsonl"]
    assert evaluate.model_save_dir == Path("models/x-save")


def test_the_notebook_holds_no_output_and_leaves_torch_to_colab(cells):
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    install = next("".join(cell["source"]) for cell in cells if "pip install" in "".join(cell["source"]))
    pattern = re.search(r'grep -v "([^"]+)"', install)[1]
    kept = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not re.search(pattern, line)]
    pins = [line.split("==")[0] for line in kept if "==" in line and not line.startswith("#")]
    assert "torch" not in pins and {"transformers", "accelerate", "scikit-learn"} <= set(pins)
