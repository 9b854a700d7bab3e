"""Stage 1: votes between tiers become ranked, labelled questions, a labelling prompt and a report."""

import json
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
from judgments import HARDEST_FIRST, RATIOS, TIERS, VOTES, gpt4_votes, human_votes, text, vote

from dataset_analysis import analyse_human_judgments as stage
from dataset_analysis import plots, report, vote_statistics
from dataset_analysis.read_judgments import read_judgments, votes_between_tiers
from dataset_analysis.vote_statistics import (
    Estimate,
    beta_interval,
    bootstrap,
    mean,
    pooled,
    probability_below,
    spearman,
    split_half,
    stepped_up,
)
from router_data import INFERIOR, SUPERIOR, InputError, LabelledQuestion, encode_row, read_rows

SHARED = Path(os.environ.get("ROUTER_SHARED_DATA", "no-shared-data"))
REAL = SHARED / "mt_bench_human_judgments"
WRITE_REPORT = report.write_report


@pytest.fixture
def judgments(tmp_path: Path, monkeypatch) -> Path:
    """A small copy of the data set; its analysis writes no report."""
    monkeypatch.setattr(report, "write_report", lambda *args, **named: None)
    folder = tmp_path / "judgments"
    folder.mkdir()
    human_votes().to_parquet(folder / "human.parquet")
    gpt4_votes().to_parquet(folder / "gpt4_pair.parquet")
    return folder


@pytest.fixture
def reported_judgments(judgments: Path, monkeypatch) -> Path:
    """The same, with a report of few draws and small pictures."""
    monkeypatch.setattr(report, "write_report", WRITE_REPORT)
    monkeypatch.setattr(vote_statistics, "DRAWS", 20)
    monkeypatch.setattr(vote_statistics, "HALVINGS", 20)
    monkeypatch.setattr(plots, "DPI", 20)
    return judgments


def analyse(dataset: Path | str, output: Path, *flags: str) -> dict[int, LabelledQuestion]:
    assert stage.main(["--dataset", str(dataset), "--output_dir", str(output), *TIERS, *flags]) == 0
    rows = read_rows(output / "mt_bench_questions_labelled.jsonl", LabelledQuestion)
    return {row.question_id: row for row in rows}


# --- counting, ranking, labelling ------------------------------------------------------------------------------------


def test_counts_ratios_and_ranks(judgments, tmp_path):
    questions = analyse(judgments, tmp_path / "out")
    for number, (superior, ties, inferior) in VOTES.items():
        row = questions[number]
        assert (row.superior_wins, row.ties, row.inferior_wins) == (superior, ties, inferior)
        assert row.inferior_ratio == pytest.approx(RATIOS[number])
        assert row.inferior_ratio_low <= row.inferior_ratio <= row.inferior_ratio_high
    # 121 has more votes for its 0 than 81; 84 has no outright win for its 0.5, 124 five.
    assert list(questions) == HARDEST_FIRST
    assert [row.difficulty_rank for row in questions.values()] == list(range(1, 11))


def test_votes_inside_a_tier_and_the_order_of_the_models_change_nothing(judgments, tmp_path):
    before = analyse(judgments, tmp_path / "before")
    rows = human_votes()
    rows = rows[rows["model_a"].str[:3] != rows["model_b"].str[:3]]  # bi-g against sma-ll only
    swapped = rows.rename(columns={"model_a": "model_b", "model_b": "model_a"})
    swapped["winner"] = rows["winner"].replace({"model_a": "model_b", "model_b": "model_a"})
    swapped.to_parquet(judgments / "human.parquet")
    after = analyse(judgments, tmp_path / "after")
    assert 160 not in before
    for number, row in before.items():
        assert row.model_dump(exclude={"labelled_at"}) == after[number].model_dump(exclude={"labelled_at"})


def test_tiers_decide_which_votes_count(judgments, tmp_path):
    flags = ["--superior_models", "big-1", "--inferior_models", "small-1"]
    questions = analyse(judgments, tmp_path / "out", *flags)
    rows = human_votes()
    pair = {"big-1", "small-1"}
    expected = sum({a, b} == pair for a, b in zip(rows["model_a"], rows["model_b"], strict=True))
    assert sum(q.superior_wins + q.ties + q.inferior_wins for q in questions.values()) == expected < len(rows)


def test_labels_follow_the_median_or_the_threshold(judgments, tmp_path):
    by_median = analyse(judgments, tmp_path / "median")
    assert [number for number, row in by_median.items() if row.label == SUPERIOR] == HARDEST_FIRST[:5]
    by_flag = analyse(judgments, tmp_path / "flag", "--threshold", "0.6")  # a ratio at the threshold is INFERIOR
    assert [number for number, row in by_flag.items() if row.label == INFERIOR] == [83, 125, 123]


def test_rows_keep_the_contract(judgments, tmp_path):
    row = analyse(judgments, tmp_path / "out")[83]
    assert row.prompt == text(83) and row.turns == [text(83), "follow-up 83"]
    assert (row.category, row.source, row.source_id) == ("writing", "lmsys/mt_bench_human_judgments", "83")
    assert row.labelled_by == "human" and row.superior_probability is None and row.labelling_prompt is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row.labelled_at)
    assert set(row.model_dump()) == set(LabelledQuestion.model_fields)  # nothing of the analysis slips in
    lines = (tmp_path / "out" / "mt_bench_questions_labelled.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(VOTES) and all(line.endswith(b"\n") for line in lines)


def test_categories_come_from_the_questions_file_where_there_is_one(judgments, tmp_path):
    assert analyse(judgments, tmp_path / "by_id")[121].category == "coding"
    lines = [json.dumps({"question_id": number, "category": "sums"}) for number in VOTES if number > 100]
    (judgments / "question.jsonl").write_text("\n".join(lines))
    named = analyse(judgments, tmp_path / "by_file")
    assert (named[121].category, named[81].category) == ("sums", "writing")


def test_a_file_of_votes_or_a_clone_of_the_hub_does_too(judgments, tmp_path):
    whole = analyse(judgments, tmp_path / "folder")
    rows = human_votes()
    rows.to_json(tmp_path / "votes.jsonl", orient="records", lines=True)
    clone = tmp_path / "clone" / "data"
    clone.mkdir(parents=True)
    rows.to_parquet(clone / "human-00000-of-00001.parquet")
    for source in (tmp_path / "votes.jsonl", clone.parent, judgments / "human.parquet"):
        assert analyse(source, tmp_path / "out")[123].inferior_ratio_high == whole[123].inferior_ratio_high


def test_inconsistent_ties_are_ties():
    rows = gpt4_votes().iloc[:2]
    votes = votes_between_tiers(rows, ["big-1", "big-2"], ["small-1", "small-2"])
    assert votes["score"].tolist() == [0.5, 0.0]


# --- the labelling prompt --------------------------------------------------------------------------------------------


def test_marked_questions_and_only_they_stand_in_the_prompt(judgments, tmp_path):
    questions = analyse(judgments, tmp_path / "out")
    prompt = (tmp_path / "out" / "labelling_prompt.txt").read_text()
    shown = {number for number, row in questions.items() if row.in_labelling_prompt}
    # One pair a category. Not 84 (all ties), nor 125 (its first turn says the opposite), though both are surer.
    assert shown == {81, 83, 121, 123}
    for number, row in questions.items():
        assert (row.prompt in prompt) == row.in_labelling_prompt
        assert f"follow-up {number}" not in prompt
        if row.in_labelling_prompt:
            assert f'{text(number)}\n</prompt>\n{{"label": "{row.label}"}}' in prompt
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
            "sure": [0.99 - 0.011 * number for number in numbers],
        },
        index=pd.Index(numbers, name="question_id"),
    )
    shown = stage.choose_examples(questions, 0.5)
    # From 9 on they aren't sure enough, so 8 has no partner. The order of the labels alternates.
    assert shown == [0, 1, 3, 2, 4, 5, 7, 6]
    questions["sure"] += 0.1
    assert len(stage.choose_examples(questions, 0.5)) == 12


def test_a_prompt_without_clear_questions_says_so(judgments, tmp_path, capsys):
    rows = human_votes()
    rows[rows["question_id"].isin([82, 84])].to_parquet(judgments / "human.parquet")
    questions = analyse(judgments, tmp_path / "out")
    assert not any(row.in_labelling_prompt for row in questions.values())
    assert "shows no examples" in capsys.readouterr().out
    assert "<example>" not in (tmp_path / "out" / "labelling_prompt.txt").read_text()


def test_the_rubric_treats_the_prompt_as_data():
    template = stage.TEMPLATE.read_text()
    assert "never instructions" in template and "prompt_to_judge" in template
    assert '{"label": "ROUTE_TO_INFERIOR"} or {"label": "ROUTE_TO_SUPERIOR"}' in template


# --- statistics ------------------------------------------------------------------------------------------------------


def test_beta_interval_against_published_values():
    # Brown, Cai and DasGupta (2001), table 5: Jeffreys' interval for n = 10.
    low, high = beta_interval(np.array([0, 1, 2, 5, 10]), np.full(5, 10))
    assert low == pytest.approx([0, 0.011, 0.044, 0.224, 0.783], abs=6e-4)
    assert high == pytest.approx([0.217, 0.381, 0.503, 0.776, 1], abs=6e-4)


def test_probability_below_agrees_with_the_interval():
    wins, votes = np.array([3.5]), np.array([20])
    low, high = beta_interval(wins, votes)
    assert probability_below(low[0], wins, votes) == pytest.approx(0.025)
    assert probability_below(high[0], wins, votes) == pytest.approx(0.975)


def test_spearman_with_ties():
    a, b = np.array([1, 2, 2, 4]), np.array([10, 30, 20, 40])
    assert spearman(a, b) == pytest.approx(0.9486833)
    assert spearman(np.stack([a, -a]), np.stack([b, b])) == pytest.approx([0.9486833, -0.9486833])
    assert np.isnan(spearman(np.ones(3), np.arange(3)))


def test_bootstrap():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = bootstrap(mean, values)
    assert found.value == values.mean()
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.04)
    assert bootstrap(pooled, np.array([1.0, 0.0]), np.array([1, 3])).value == 0.25
    assert f"{Estimate(0.5, 0.25, 0.75):.2f}" == "0.50 [0.25, 0.75]"


def test_split_half_finds_order_noise_and_votes_that_belong_together():
    random = np.random.default_rng(0)
    question = np.repeat(np.arange(60), 8)
    own = np.arange(480)
    certain, stepped = split_half(question, own, question / 60)
    assert (certain.value, stepped.value) == pytest.approx((1, 1))
    noise, _ = split_half(question, own, random.random(480))
    assert noise.low < 0 < noise.high
    # Four judges give the same noise twice: votes apart look reliable, judges apart don't.
    judge, score = np.tile([0, 0, 1, 1, 2, 2, 3, 3], 60), np.repeat(random.random(240), 2)
    assert split_half(question, own, score)[0].value > 0.3
    assert split_half(question, judge, score)[0].value < 0.15
    assert stepped_up(np.array([0.5, -0.2])) == pytest.approx([2 / 3, 0])


# --- the report ------------------------------------------------------------------------------------------------------


def test_report_and_its_plots(reported_judgments, tmp_path):
    analyse(reported_judgments, tmp_path / "out")
    written = (tmp_path / "out" / "mt_bench_analysis.md").read_text()
    assert f"Source: {reported_judgments}. Of its 202 human votes, 180 are between the tiers" in written
    assert "inferior model's answer in 21.7% [" in written and "called 37.8% [" in written  # 39 and 68 of 180
    assert "the inferior ratio is 0.340 [" in written
    assert "0.000 (question 121, coding) to 0.700 (question 123, coding)" in written
    assert "left out: 1." in written and "$" not in written.split("## All questions")[0]
    pictures = re.findall(r"\((mt_bench_analysis/\w+\.png)\)", written)
    assert len(pictures) == 4
    for picture in pictures:
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    rows = [line for line in written.splitlines() if re.match(r"\| \d", line)]
    assert [int(line.split(" | ")[1]) for line in rows] == HARDEST_FIRST
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {12}  # the text's own bar is escaped
    assert str(ROOT) not in written


def test_models_and_tiers_against_each_other():
    votes = votes_between_tiers(human_votes(), ["big-1", "big-2"], ["small-1", "small-2"])
    table = report.model_pairs(votes).set_index(["superior", "inferior"])
    assert len(table) == 9 and table.loc[("all", "all"), "votes"] == 180
    assert table.loc[("all", "all"), "value"] == pytest.approx((39 + 68 / 2) / 180)
    pair = votes[(votes["superior"] == "big-2") & (votes["inferior"] == "small-1")]
    assert table.loc[("big-2", "small-1"), "value"] == pytest.approx(pair["score"].mean())
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_adjusting_for_the_pairs_changes_nothing_where_there_is_one_pair():
    votes = votes_between_tiers(human_votes(), ["big-1"], ["small-1"])
    questions = pd.DataFrame({"inferior_ratio": votes.groupby("question_id")["score"].mean()})
    assert report.stability(votes, questions)["ratio, ratio adjusted for which models met"].low == pytest.approx(1)


def test_agreement_with_gpt4_stands_beside_a_constant_answer():
    def votes(scores):
        where = {"question_id": range(len(scores)), "turn": 1, "superior": "big-1", "inferior": "small-1"}
        return pd.DataFrame({**where, "score": scores})

    sentence = report.agreement(votes([0, 0, 0, 1, 1, 0.5, 0]), votes([0, 0, 1, 1, 0, 0, 0.5]))
    assert "(5 human votes)" in sentence  # two have a tie on either side
    assert re.search(r"side in 60\.0% \[.*superior model would do so in 60\.0% \[.*difference 0\.0%", sentence)


def test_report_without_gpt4(reported_judgments, tmp_path):
    (reported_judgments / "gpt4_pair.parquet").unlink()
    analyse(reported_judgments, tmp_path / "out")
    written = (tmp_path / "out" / "mt_bench_analysis.md").read_text()
    assert "holds no votes of the GPT-4 judge" in written and "human_against_gpt4" not in written


def test_last_lines_are_commands_that_the_next_stages_take(judgments, tmp_path, capsys):
    from create_dataset import label_prompts
    from finetuning_model import finetune_bert

    analyse(judgments, tmp_path / "out put")
    label, train = capsys.readouterr().out.splitlines()[-2:]
    parsed = label_prompts.parse_args(shlex.split(label.split("label_prompts.py")[1]))
    assert parsed.dry_run and parsed.limit == 100
    assert parsed.labelling_prompt.exists() and parsed.questions_file.exists()
    assert finetune_bert.parse_args(shlex.split(train.split("finetune_bert.py")[1]))
    assert stage.next_commands(Path("final-datasets")).splitlines()[0].endswith("--limit 100 --dry_run")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--superior_models", "gpt-9"], "--superior_models: no votes on gpt-9; the data has big-1, big-2, small-1"),
        (["--inferior_models", "big-1"], "big-1 cannot be in both"),
        (["--threshold", "0.9"], "same label; the ratios lie between 0.000 and 0.700"),
        (["--dataset", "nowhere/human.parquet"], "no such file or folder: nowhere/human.parquet"),
        (["--dataset", "./nowhere"], "no such file or folder"),
    ],
)
def test_bad_flags_end_in_one_line(judgments, tmp_path, flags, message):
    with pytest.raises(InputError) as error:
        analyse(judgments, tmp_path / "out", *flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_that_never_met(judgments, tmp_path):
    rows = [vote(81, i, 1, models=tier) for i in (0, 2, 3, 5) for tier in (("big", "big"), ("small", "small"))]
    pd.DataFrame(rows).to_parquet(judgments / "human.parquet")
    with pytest.raises(InputError, match="no vote is between"):
        analyse(judgments, tmp_path / "out")


def test_bad_files_are_named(judgments, tmp_path):
    human = human_votes()
    cases = {
        "human.parquet": (human.drop(columns=["judge", "turn"]), "no column judge, turn"),
        "win.parquet": (human.assign(winner="model_c"), "unknown winner 'model_c'"),
        "none.parquet": (human.iloc[:0], "no rows"),
        "mute.parquet": (human.assign(conversation_a=None), "no user's message in conversation_a of question 81"),
        "judge.parquet": (gpt4_votes(), "holds GPT-4's votes"),
    }
    for name, (rows, message) in cases.items():
        rows.to_parquet(tmp_path / name)
        with pytest.raises(InputError, match=re.escape(message)) as error:
            analyse(tmp_path / name, tmp_path / "out")
        assert name in str(error.value)
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    (tmp_path / "votes.txt").write_text("?")
    for source in ("broken.parquet", "votes.txt"):
        with pytest.raises(InputError, match=source):
            analyse(tmp_path / source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no human\.parquet in"):
        analyse(tmp_path / "empty", tmp_path / "out")


def test_output_folder_that_is_a_file(judgments, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot write to --output_dir"):
        analyse(judgments, tmp_path / "out")


def test_the_script_ends_with_one_line_and_status_1(tmp_path):
    script = ROOT / "dataset_analysis" / "analyse_human_judgments.py"
    result = subprocess.run(
        [sys.executable, script, "--dataset", "./nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: no such file") and result.stderr.count("\n") == 1


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_hub_is_read_by_its_splits(reported_judgments, tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        frames = {"human": human_votes(), "gpt4_pair": gpt4_votes()}
        return datasets.DatasetDict({split: datasets.Dataset.from_pandas(rows) for split, rows in frames.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = analyse("lmsys/mt_bench_human_judgments", tmp_path / "hub")
    local = analyse(reported_judgments, tmp_path / "local")
    assert asked == ["lmsys/mt_bench_human_judgments"]
    for number, row in from_hub.items():
        assert row.model_dump(exclude={"labelled_at"}) == local[number].model_dump(exclude={"labelled_at"})
    assert (
        "lmsys/mt_bench_human_judgments on the Hugging Face hub" in (tmp_path / "hub/mt_bench_analysis.md").read_text()
    )


@pytest.mark.parametrize("reason", ["is a gated dataset on the Hub. Visit its page\nto ask", "no network"])
def test_a_hub_that_refuses_or_is_away(monkeypatch, reason):
    import datasets

    def load_dataset(name):
        raise datasets.exceptions.DatasetNotFoundError(reason) if "gated" in reason else ConnectionError(reason)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as error:
        read_judgments("lmsys/mt_bench_human_judgments")
    line = str(error.value)
    assert "\n" not in line and "https://huggingface.co/datasets/lmsys/mt_bench_human_judgments" in line
    assert "HF_TOKEN" in line and "--dataset" in line


def test_a_hub_data_set_without_human_votes(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_pandas(gpt4_votes())
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows))
    with pytest.raises(InputError, match="no split 'human', only train"):
        read_judgments("some/votes")


# --- help, and the real judgments ------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['dataset_analysis/analyse_human_judgments.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'gradio', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for flag in ("--dataset", "--superior_models", "--inferior_models", "--threshold", "--output_dir", "Example:"):
        assert flag in result.stdout


@pytest.mark.skipif(not REAL.exists(), reason="needs the real judgments (ROUTER_SHARED_DATA)")
def test_the_real_judgments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *args, **named: None)
    assert stage.main(["--dataset", str(REAL), "--output_dir", str(tmp_path)]) == 0
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


@pytest.mark.skipif(not (REAL / "question.jsonl").exists(), reason="needs the real judgments (ROUTER_SHARED_DATA)")
def test_categories_by_number_are_those_of_the_questions_file(tmp_path):
    (tmp_path / "human.parquet").symlink_to((REAL / "human.parquet").resolve())
    with_file, without = read_judgments(str(REAL)), read_judgments(str(tmp_path))
    assert with_file.categories and not without.categories
    from dataset_analysis.read_judgments import question_texts

    assert question_texts(with_file)["category"].tolist() == question_texts(without)["category"].tolist()
