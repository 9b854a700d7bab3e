"""Stage 1: votes between tiers become ranked, labelled questions and a labelling prompt."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from judgments import HARDEST_FIRST, RATIOS, VOTES, analyse_judgments, human_votes, text, vote, write_votes

from dataset_analysis import analyse_human_judgments as stage
from router_data import INFERIOR, SUPERIOR, InputError, LabelledQuestion, encode_row, read_rows

SHARED = Path(os.environ.get("ROUTER_SHARED_DATA", "no-shared-data"))
REAL = SHARED / "mt_bench_human_judgments"


# --- counting, ranking, labelling -------------------------------------------------------------------------------------


def test_counts_ratios_and_ranks(judgments, tmp_path):
    questions = analyse_judgments(judgments, tmp_path / "out")
    for number, (superior, ties, inferior) in VOTES.items():
        row = questions[number]
        assert (row.superior_wins, row.ties, row.inferior_wins) == (superior, ties, inferior)
        assert row.inferior_ratio == pytest.approx(RATIOS[number])
        assert row.inferior_ratio_low <= row.inferior_ratio <= row.inferior_ratio_high
    # 121 has more votes for its 0 than 81; 84 has no outright win for its 0.5, 124 five.
    assert list(questions) == HARDEST_FIRST
    assert [row.difficulty_rank for row in questions.values()] == list(range(1, 11))


def test_votes_inside_a_tier_and_the_order_of_the_models_change_nothing(judgments, tmp_path):
    before = analyse_judgments(judgments, tmp_path / "before")
    rows = human_votes()
    rows = rows[rows["model_a"].str[:3] != rows["model_b"].str[:3]]  # bi-g against sma-ll only
    swapped = rows.rename(columns={"model_a": "model_b", "model_b": "model_a"})
    swapped["winner"] = rows["winner"].replace({"model_a": "model_b", "model_b": "model_a"})
    write_votes(swapped, judgments / "human.jsonl")
    after = analyse_judgments(judgments, tmp_path / "after")
    assert 160 not in before
    for number, row in before.items():
        assert row.model_dump(exclude={"labelled_at"}) == after[number].model_dump(exclude={"labelled_at"})


def test_tiers_decide_which_votes_count(judgments, tmp_path):
    flags = ["--superior_models", "big-1", "--inferior_models", "small-1"]
    questions = analyse_judgments(judgments, tmp_path / "out", *flags)
    rows = human_votes()
    pair = {"big-1", "small-1"}
    expected = sum({a, b} == pair for a, b in zip(rows["model_a"], rows["model_b"], strict=True))
    assert sum(q.superior_wins + q.ties + q.inferior_wins for q in questions.values()) == expected < len(rows)


def test_labels_follow_the_median_or_the_threshold(judgments, tmp_path):
    by_median = analyse_judgments(judgments, tmp_path / "median")
    assert [number for number, row in by_median.items() if row.label == SUPERIOR] == HARDEST_FIRST[:5]
    by_flag = analyse_judgments(
        judgments, tmp_path / "flag", "--threshold", "0.6"
    )  # a ratio at the threshold is INFERIOR
    assert [number for number, row in by_flag.items() if row.label == INFERIOR] == [83, 125, 123]


def test_rows_keep_the_contract(judgments, tmp_path):
    row = analyse_judgments(judgments, tmp_path / "out")[83]
    assert row.prompt == text(83) and row.turns == [text(83), "follow-up 83"]
    assert (row.category, row.source, row.source_id) == ("writing", "lmsys/mt_bench_human_judgments", "83")
    assert row.labelled_by == "human" and row.superior_probability is None and row.labelling_prompt is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row.labelled_at)
    assert set(row.model_dump()) == set(LabelledQuestion.model_fields)  # nothing of the analysis slips in
    lines = (tmp_path / "out" / "mt_bench_questions_labelled.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(VOTES) and all(line.endswith(b"\n") for line in lines)


# --- the labelling prompt ---------------------------------------------------------------------------------------------


def test_marked_questions_and_only_they_stand_in_the_prompt(judgments, tmp_path):
    questions = analyse_judgments(judgments, tmp_path / "out")
    prompt = (tmp_path / "out" / "labelling_prompt.txt").read_text()
    shown = {number for number, row in questions.items() if row.in_labelling_prompt}
    # One pair a category. Not 84 (all ties), nor 125 (its first turn says the opposite), though both are surer.
    assert shown == {81, 83, 121, 123}
    for number, row in questions.items():
        assert (row.prompt in prompt) == row.in_labelling_prompt
        assert f"follow-up {number}" not in prompt
        if row.in_labelling_prompt:
            size = "large" if row.label == SUPERIOR else "small"
            assert re.search(
                re.escape(f"{text(number)}\n</prompt>\n<votes>{row.superior_wins} for the stronger")
                + rf".*{size}</votes>",
                prompt,
            )
    assert "(big-1, big-2)" in prompt and "(small-1, small-2)" in prompt


def test_the_prompt_shows_at_most_six_pairs_from_different_categories():
    numbers = range(16)
    questions = pd.DataFrame(
        {
            "category": [f"category {number // 2}" for number in numbers],
            "label": [SUPERIOR, INFERIOR] * 8,
            "first_turn_ratio": [0.1, 0.9] * 8,
            "votes": 20,
            "ties": 0,
            "label_confidence": [0.99 - 0.011 * number for number in numbers],
        },
        index=pd.Index(numbers, name="question_id"),
    )
    shown = stage.choose_examples(questions, 0.5)
    # From 9 on the labels are too uncertain, so 8 has no partner. The order of the labels alternates.
    assert shown == [0, 1, 3, 2, 4, 5, 7, 6]
    questions["label_confidence"] += 0.1
    assert len(stage.choose_examples(questions, 0.5)) == 12


def test_a_prompt_without_clear_questions_says_so(judgments, tmp_path, capsys):
    rows = human_votes()
    write_votes(rows[rows["question_id"].isin([82, 84])], judgments / "human.jsonl")
    questions = analyse_judgments(judgments, tmp_path / "out")
    assert not any(row.in_labelling_prompt for row in questions.values())
    assert "shows no examples" in capsys.readouterr().out
    assert "<example>" not in (tmp_path / "out" / "labelling_prompt.txt").read_text()


def test_the_rubric_treats_the_prompt_as_data():
    template = stage.TEMPLATE.read_text()
    assert "never instructions" in template and "prompt_to_judge" in template
    assert '{"inferior_quality": <0 to 1>, "superior_quality": <0 to 1>}' in template


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_last_line_is_a_command_that_stage_2_takes(judgments, tmp_path, capsys):
    from create_dataset import label_prompts

    analyse_judgments(judgments, tmp_path / "out put")
    train, label = capsys.readouterr().out.splitlines()[-2:]
    assert label.startswith("next: python3 create_dataset/label_prompts.py")
    parsed = label_prompts.parse_args(shlex.split(label.split("label_prompts.py")[1]))
    assert parsed.dry_run and parsed.limit == 100
    assert parsed.labelling_prompt.exists() and parsed.questions_file.exists()
    assert "finetune_bert.py --train_files final-datasets/sample/" in train
    assert stage.next_commands(Path("final-datasets")).endswith("--limit 100 --dry_run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--superior_models", "gpt-9"], "--superior_models: no votes on gpt-9; the data has big-1, big-2, small-1"),
        (["--inferior_models", "big-1"], "big-1 cannot be in both"),
        (["--threshold", "1"], "--threshold 1 is not between 0 and 1"),
        (["--threshold", "0.9"], "same label; the ratios lie between 0.000 and 0.700"),
        (["--dataset", "nowhere/human.parquet"], "no such file or folder: nowhere/human.parquet"),
        (["--dataset", "./nowhere"], "no such file or folder"),
    ],
)
def test_bad_flags_end_in_one_line(judgments, tmp_path, flags, message):
    with pytest.raises(InputError) as error:
        analyse_judgments(judgments, tmp_path / "out", *flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_that_never_met(judgments, tmp_path):
    rows = [vote(81, i, 1, models=tier) for i in (0, 2, 3, 5) for tier in (("big", "big"), ("small", "small"))]
    write_votes(pd.DataFrame(rows), judgments / "human.jsonl")
    with pytest.raises(InputError, match="no vote is between"):
        analyse_judgments(judgments, tmp_path / "out")


def test_output_folder_that_is_a_file(judgments, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot write to --output_dir"):
        analyse_judgments(judgments, tmp_path / "out")


@pytest.mark.slow
def test_the_script_ends_with_one_line_and_status_1(tmp_path):
    script = ROOT / "dataset_analysis" / "analyse_human_judgments.py"
    result = subprocess.run(
        [sys.executable, script, "--dataset", "./nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: no such file") and result.stderr.count("\n") == 1


@pytest.mark.skipif(not REAL.exists(), reason="needs the real judgments (ROUTER_SHARED_DATA)")
def test_the_real_judgments(judgments, tmp_path, capsys):
    stage.main(["--dataset", str(REAL), "--output_dir", str(tmp_path)])
    questions = list(read_rows(tmp_path / "mt_bench_questions_labelled.jsonl", LabelledQuestion))
    assert "2,049 of 3,355 human votes" in capsys.readouterr().out
    assert sum(q.superior_wins + q.ties + q.inferior_wins for q in questions) == 2049
    assert np.mean([q.inferior_ratio for q in questions]) == pytest.approx(0.199, abs=5e-4)
    assert (questions[0].question_id, questions[0].inferior_ratio, questions[0].difficulty_rank) == (99, 0.0, 1)
    assert (questions[-1].question_id, questions[-1].difficulty_rank) == (100, 80)
    assert questions[-1].inferior_ratio == pytest.approx(0.578, abs=5e-4)
    labels = [q.label for q in questions]
    assert min(labels.count(SUPERIOR), labels.count(INFERIOR)) >= 25
    shown = [q for q in questions if q.in_labelling_prompt]
    prompt = (tmp_path / "labelling_prompt.txt").read_text()
    assert 8 <= len(shown) <= 12 and len({q.category for q in shown}) == len(shown) / 2
    assert {q.question_id for q in questions if q.prompt in prompt} == {q.question_id for q in shown}
    # grep finds the rows of a label and no others
    lines = [encode_row(q) for q in questions]
    assert sum(b'"ROUTE_TO_SUPERIOR"' in line for line in lines) == labels.count(SUPERIOR)
