"""Reading judgments in the forms in which people have them: the hub, a clone, a file, a table."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from judgments import VOTES, analyse_judgments, gpt4_votes, human_votes, write_votes

from dataset_analysis.read_judgments import question_texts, read_judgments, votes_between_tiers
from router_data import InputError

REAL = Path(os.environ.get("ROUTER_SHARED_DATA", "no-shared-data")) / "mt_bench_human_judgments"


def test_categories_come_from_the_questions_file_where_there_is_one(judgments, tmp_path):
    assert analyse_judgments(judgments, tmp_path / "by_id")[121].category == "coding"
    lines = [json.dumps({"question_id": number, "category": "sums"}) for number in VOTES if number > 100]
    (judgments / "question.jsonl").write_text("\n".join(lines))
    named = analyse_judgments(judgments, tmp_path / "by_file")
    assert (named[121].category, named[81].category) == ("sums", "writing")


def as_json_lines(rows: pd.DataFrame, folder: Path) -> Path:
    write_votes(rows, folder / "votes.jsonl")
    return folder / "votes.jsonl"


def as_packed_json_lines(rows: pd.DataFrame, folder: Path) -> Path:
    write_votes(rows, folder / "human.jsonl.gz")
    return folder / "human.jsonl.gz"


def as_json_array(rows: pd.DataFrame, folder: Path) -> Path:
    rows.to_json(folder / "votes.json", orient="records")
    return folder / "votes.json"


def as_table(rows: pd.DataFrame, folder: Path) -> Path:
    conversations = {name: rows[name].map(json.dumps) for name in ("conversation_a", "conversation_b")}
    rows.assign(**conversations).to_csv(folder / "human.csv", index=False)
    return folder / "human.csv"


def as_clone_of_the_hub(rows: pd.DataFrame, folder: Path) -> Path:
    (folder / "data").mkdir()
    half = len(rows) // 2
    rows[:half].to_parquet(folder / "data" / "human-00000-of-00002.parquet")
    rows[half:].to_parquet(folder / "data" / "human-00001-of-00002.parquet")
    return folder


def as_saved_to_disk(rows: pd.DataFrame, folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict(human=Dataset.from_pandas(rows, preserve_index=False)).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    "form",
    [as_json_lines, as_packed_json_lines, as_json_array, as_table, as_clone_of_the_hub, as_saved_to_disk],
    ids=lambda form: form.__name__,
)
def test_votes_are_read_in_the_forms_people_have(judgments, tmp_path, form):
    whole = analyse_judgments(judgments, tmp_path / "whole")
    (tmp_path / "copy").mkdir()
    found = analyse_judgments(form(human_votes(), tmp_path / "copy"), tmp_path / "out")
    for number, row in whole.items():
        assert row.model_dump(exclude={"labelled_at"}) == found[number].model_dump(exclude={"labelled_at"})


def test_gpt4s_votes_are_found_beside_a_file_of_human_ones(judgments):
    found = read_judgments(str(judgments / "human.jsonl"))
    assert len(found.human) == len(human_votes()) and len(found.gpt4) == len(gpt4_votes())


def test_inconsistent_ties_are_ties():
    rows = gpt4_votes().iloc[:2]
    votes = votes_between_tiers(rows, ["big-1", "big-2"], ["small-1", "small-2"])
    assert votes["score"].tolist() == [0.5, 0.0]


def test_bad_files_are_named(judgments, tmp_path):
    human = human_votes()
    cases = {
        "human.jsonl": (human.drop(columns=["judge", "turn"]), "no column judge, turn"),
        "win.jsonl": (human.assign(winner="model_c"), "unknown winner 'model_c'"),
        "none.parquet": (human.iloc[:0], "no rows"),
        "mute.jsonl": (human.assign(conversation_a=None), "no user's message in conversation_a of question 81"),
        "words.jsonl": (human.assign(conversation_a="hm"), "no user's message in conversation_a of question 81"),
        "named.csv": (human.assign(question_id="q81"), "question_id is not a number in every row"),
        "judge.jsonl": (gpt4_votes(), "holds GPT-4's votes"),
    }
    write = {".jsonl": write_votes, ".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}
    for name, (rows, message) in cases.items():
        write[Path(name).suffix](rows, tmp_path / name)
        with pytest.raises(InputError, match=re.escape(message)) as error:
            analyse_judgments(tmp_path / name, tmp_path / "out")
        assert name in str(error.value)
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    (tmp_path / "votes.txt").write_text("?")
    for source in ("broken.parquet", "votes.txt"):
        with pytest.raises(InputError, match=source):
            analyse_judgments(tmp_path / source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no human\.parquet in"):
        analyse_judgments(tmp_path / "empty", tmp_path / "out")


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hub_is_read_by_its_splits(reported_judgments, tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        frames = {"human": human_votes(), "gpt4_pair": gpt4_votes()}
        return datasets.DatasetDict({split: datasets.Dataset.from_pandas(rows) for split, rows in frames.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = analyse_judgments("lmsys/mt_bench_human_judgments", tmp_path / "hub")
    local = analyse_judgments(reported_judgments, tmp_path / "local")
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


@pytest.mark.skipif(not (REAL / "question.jsonl").exists(), reason="needs the real judgments (ROUTER_SHARED_DATA)")
def test_categories_by_number_are_those_of_the_questions_file(tmp_path):
    (tmp_path / "human.parquet").symlink_to((REAL / "human.parquet").resolve())
    with_file, without = read_judgments(str(REAL)), read_judgments(str(tmp_path))
    assert with_file.categories and not without.categories
    assert question_texts(with_file)["category"].tolist() == question_texts(without)["category"].tolist()
