"""Published outcomes as rows of ours: each form of columns, what is dropped, and the hub's card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from local_hub import LocalHub

from create_dataset import import_outcomes
from router_data import InputError, Outcome, read_rows

TIERS = ("--inferior_models", "small*", "--superior_models", "large")


def write(rows: list[dict], path: str = "data.jsonl") -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def imported(*flags: str, dataset: str = "data.jsonl") -> list[Outcome]:
    path = import_outcomes.main(["--dataset", dataset, "--output_file", "out.jsonl", *flags])
    return list(read_rows(path, Outcome))


def scores_of(outcomes: list[Outcome]) -> list[tuple[float, float]]:
    return [(row.weak_score, row.strong_score) for row in outcomes]


@pytest.mark.parametrize("column", ["prompt", "query"])
def test_grades_against_gpt_4(column, capsys):
    write([{column: f"q {grade}", "mixtral_score": grade, "source": "s"} for grade in (1, "3", 5, 6, None)])
    rows = imported()
    assert scores_of(rows) == [(0, 1), (0.5, 1), (1, 1)]
    assert rows[0].weak_model == "mixtral-8x7b-instruct-v0.1" and rows[0].group == "s"
    said = capsys.readouterr().out
    assert "5 rows read, 3 outcomes" in said and "2  no grade of 1 to 5" in said
    assert said.splitlines()[-1] == "next: python3 finetuning_model/finetune_bert.py --train_files out.jsonl"


def test_a_score_per_model():
    model = {"num_input_tokens": 3, "response": "r"}
    write([{"prompt": "q", "small-8b": {**model, "score": 0.25}, "large": json.dumps({**model, "score": 1})}])
    (row,) = imported(*TIERS)
    assert (row.weak_model, row.weak_score, row.strong_model, row.strong_score) == ("small-8b", 0.25, "large", 1)


def test_json_nested_without_end_in_a_text_is_a_row_without_scores_or_a_prompt_as_it_is(capsys):
    deep = "[" * 100_000
    write([{"prompt": f"q {i}", "small": {"score": 1}, "large": {"score": large}} for i, large in enumerate((1, 0))])
    with open("data.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "q 3", "small": {"score": 1}, "large": '{"score": ' + deep}) + "\n")
        file.write(json.dumps({"prompt": deep, "small": {"score": 1}, "large": {"score": 1}}) + "\n")
    assert len(imported(*TIERS)) == 2
    said = capsys.readouterr().out
    assert "1  no scores of 0 to 1" in said and "1  longer than 8000 characters" in said


def test_a_row_per_prompt_and_model_waits_for_the_other():
    answers = [("1", "small", 0), ("2", "large", 1), ("1", "other", 1), ("2", "small", 1), ("1", "large", 1)]
    write([{"prompt_id": p, "model_id": m, "prompt": f"q {p}", "label": y, "category": "c"} for p, m, y in answers])
    rows = imported(*TIERS)
    assert [(row.prompt, row.source_id, row.weak_score, row.strong_score) for row in rows] == [
        ("q 2", "2", 1, 1),
        ("q 1", "1", 0, 1),
    ]


def battle(prompt: object, a: str = "small", b: str = "large", **winner) -> dict:
    return {"id": 1, "prompt": prompt, "model_a": a, "model_b": b, **winner}


def test_preferences_in_three_columns_with_prompts_as_json_in_a_text():
    won = [dict(zip(import_outcomes.WINNER_COLUMNS, flags, strict=True)) for flags in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    rows = [battle(json.dumps([f"q {i}"]), **flags) for i, flags in enumerate(won)]
    rows += [
        battle('["turned round"]', "large", "small-2", **won[0]),
        battle('["one", "two"]', **won[0]),
        battle('["other pair"]', "large", "large", **won[0]),
        battle('["nobody"]', winner_model_a=0, winner_model_b=0, winner_tie=0),
    ]
    write(rows)
    found = imported(*TIERS)
    assert [row.prompt for row in found] == ["q 0", "q 1", "q 2", "turned round"]
    assert scores_of(found) == [(1, 0), (0, 1), (0.5, 0.5), (0, 1)]
    assert found[3].weak_model == "small-2"


@pytest.mark.parametrize(
    ("winner", "scores"),
    [("model_a", (1, 0)), ("model_b", (0, 1)), ("tie", (0.5, 0.5)), ("tie (bothbad)", (0, 0)), ("both_bad", (0, 0))],
)
def test_preferences_by_name_with_the_arenas_conversations(winner, scores):
    parts = [{"type": "text", "text": "what is it?", "image": None}]
    conversation = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    row = {"id": "i", "model_a": "small", "model_b": "large", "winner": winner, "language": "en"}
    write([{**row, "conversation_a": conversation, "conversation_b": conversation}])
    (found,) = imported(*TIERS)
    assert (found.prompt, found.source_id, scores_of([found])) == ("what is it?", "i", [scores])


def test_rows_that_nobody_may_train_on_are_dropped_by_reason(capsys):
    grade = {"mixtral_score": 4}
    write([{"prompt": "the question that is judged on, at length, word by word"}], "judged.jsonl")
    texts = ["kept", "KEPT ", "the question that is judged on, at length, word by word!", "x" * 60, " "]
    rows = [{"prompt": text, "language": "English", **grade} for text in texts]
    write([*rows, {"prompt": "Frage", "language": "German", **grade}])
    assert [row.prompt for row in imported("--judged_on", "judged.jsonl", "--max_characters", "57")] == ["kept"]
    said = capsys.readouterr().out
    for reason in ("repeated", "nearly alike", "longer than 57", "blank or no prompt", "other language"):
        assert reason in said, reason


def test_a_limit_ends_the_reading():
    write([{"prompt": f"q {i}", "mixtral_score": 2} for i in range(9)])
    assert len(imported("--limit", "4")) == 4


@pytest.mark.parametrize(
    ("row", "flags", "says"),
    [
        ({"prompt": "q", "answer": "a"}, (), "no outcomes that can be read.*its columns: prompt, answer"),
        ({"prompt": "q", "model_a": "m", "model_b": "n"}, (), "neither `winner` nor winner_model_a and winner_model_b"),
        ({"prompt": "q", "model_id": "m"}, (), "model_id, but no `label`"),
        ({"mixtral_score": 1, "x": 1}, (), "row 1: no prompt among the columns mixtral_score, x"),
        ({"prompt": "q", "m": {"score": 1}}, TIERS, "--inferior_models must name one model, but.*it has: m"),
        (battle("q", "m", "n", winner="tie"), TIERS, r"name two tiers of its models: m \(1\), n \(1\)"),
    ],
)
def test_what_is_missing_is_named(row, flags, says):
    write([row])
    with pytest.raises(InputError, match=says):
        imported(*flags)
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("name", sorted(import_outcomes.NEVER))
def test_what_must_not_be_trained_on_is_refused(name):
    with pytest.raises(InputError, match="is not imported"):
        import_outcomes.parse_args(["--dataset", name])


@pytest.mark.parametrize(("flag", "value"), [("--limit", "-1"), ("--max_characters", "0")])
def test_bounds_that_leave_nothing_are_refused(flag, value):
    with pytest.raises(InputError, match=f"{flag} must"):
        import_outcomes.parse_args(["--dataset", "x", flag, value])


def test_an_import_never_writes_over_a_file(capsys):
    Path("out.jsonl").write_text("")
    with pytest.raises(InputError, match="is there already"):
        import_outcomes.parse_args(["--dataset", "x", "--output_file", "out.jsonl"])
    with pytest.raises(SystemExit):
        import_outcomes.parse_args(["--help"])
    assert "where it exists, the import is refused" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "says"), [({"license": "mit"}, "licence mit (by its card)"), (None, "apache-2.0 (by its card of November")]
)
def test_from_the_hub_with_the_licence_of_its_card(tmp_path, card, says):
    rows = b"".join(json.dumps({"prompt": f"q {i}", "mixtral_score": i % 5 + 1}).encode() + b"\n" for i in range(20))
    name = "routellm/gpt4_dataset"
    with LocalHub({name: {"train.jsonl": rows}}, {name: card} if card else {}) as hub:
        done = subprocess.run(
            [sys.executable, ROOT / "create_dataset" / "import_outcomes.py", "--dataset", name, "--limit", "7"],
            capture_output=True,
            text=True,
            env={**os.environ, **hub.environment(tmp_path / "cache")},
        )
    assert done.returncode == 0, done.stderr[-1500:]
    assert says in done.stdout
    (path,) = Path("final-datasets").glob("router_dataset_outcomes-routellm-gpt4_dataset-*.jsonl")
    assert len(list(read_rows(path, Outcome))) == 7
