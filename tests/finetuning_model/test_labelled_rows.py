"""The rows that stage 3 reads: checked, labelled by the gain, without repeats, near duplicates in one part."""

import pytest
from made_up import made_up_rows, row_of

from finetuning_model.labelled_rows import (
    read_labelled_rows,
    read_questions,
    read_training_data,
    read_unlabelled,
    split_rows,
)
from router_data import INFERIOR, SUPERIOR, InputError, LabelledPrompt, normalise_prompt, write_rows


def test_near_duplicates_never_straddle_the_parts():
    rows = []
    for i, row in enumerate(made_up_rows(120)):
        base_row = LabelledPrompt(**{**row, "prompt": row["prompt"] + f" some more words to be long enough {i}"})
        rows += [base_row, base_row.model_copy(update={"prompt": base_row.prompt.upper() + "!"})]
    parts = split_rows(rows, seed=3)
    where = {}
    for number, part in enumerate(parts):
        for row in part.rows:
            assert where.setdefault(normalise_prompt(row.prompt).rstrip("!"), number) == number
    assert sum(len(part.rows) for part in parts) == len(rows)
    assert [len(part.rows) for part in split_rows(rows, seed=3)] == [len(part.rows) for part in parts]


def test_outcomes_are_labelled_by_the_gain(tmp_path):
    scores = {
        "one answer wins": (0.0, 1.0),
        "the cheap one wins": (1, 0),
        "both fail": (0.0, 0.0),
        "a fifth": (0.5, 0.7),
    }
    write_rows(
        tmp_path / "o.jsonl",
        [{"prompt": prompt, "weak_score": weak, "strong_score": strong} for prompt, (weak, strong) in scores.items()],
    )
    rows, counts, files = read_labelled_rows([tmp_path / "o.jsonl"])
    assert [row.soft_label for row in rows] == pytest.approx([1 / (1 + 0.15**2), 0, 0, 0.04 / (0.04 + 0.15**2)])
    assert [row.label for row in rows] == [SUPERIOR, INFERIOR, INFERIOR, SUPERIOR]
    assert counts["rows_read"] == 4 and files == [str(tmp_path / "o.jsonl")]


def test_a_rare_label_is_named(tmp_path):
    rows = [LabelledPrompt(**row) for row in made_up_rows(60) if row["label"] == INFERIOR]
    with pytest.raises(
        InputError, match="every part needs both labels, .* 30 ROUTE_TO_INFERIOR and 0 ROUTE_TO_SUPERIOR"
    ):
        split_rows(rows, seed=0)


def test_two_labels_of_one_labeller_stop_it_and_two_labellers_do_not(tmp_path):
    write_rows(tmp_path / "a.jsonl", [row_of("One prompt"), row_of("one  PROMPT", INFERIOR)])
    with pytest.raises(InputError, match="labelled ROUTE_TO_INFERIOR, but ROUTE_TO_SUPERIOR"):
        read_labelled_rows([tmp_path / "a.jsonl"])
    write_rows(tmp_path / "a.jsonl", [row_of("One prompt"), row_of("one prompt", INFERIOR, labelled_by="human")][:1])
    write_rows(tmp_path / "b.jsonl", [{**row_of("one prompt", INFERIOR), "labelled_by": "human"}])
    rows, counts, _ = read_labelled_rows([tmp_path / "*.jsonl"])
    assert len(rows) == 2 and counts["repeats_dropped"] == 0


def test_without_questions_it_says_how_to_make_them(tmp_path, capsys):
    assert read_questions(tmp_path / "none.jsonl") == []
    assert "python3 dataset_analysis/analyse_human_judgments.py" in capsys.readouterr().out


def test_what_a_router_knows_is_never_judged_on():
    rows = [LabelledPrompt(**row) for row in made_up_rows(100)]
    trained = {normalise_prompt(row.prompt) for row in rows[:60]}
    train, validation, test = split_rows(rows, 0, trained)
    judged = {normalise_prompt(row.prompt) for row in (*validation.rows, *test.rows)}
    assert not judged & trained and len(judged) == 20 and len(train.rows) == 80
    everything = {normalise_prompt(row.prompt) for row in rows}
    with pytest.raises(InputError, match="in 100 groups that the router knows already"):
        split_rows(rows, 0, everything)


def test_few_rows_with_a_rare_label_are_drawn_until_every_part_has_both():
    rows = [LabelledPrompt(**row_of(f"prompt number {i * 7919}", SUPERIOR if i < 6 else INFERIOR)) for i in range(50)]
    for seed in range(5):
        assert all(len({row.label for row in part.rows}) == 2 for part in split_rows(rows, seed))


def test_prompts_without_labels_come_once_and_without_those_that_judge_or_teach(tmp_path):
    answers = {"inferior_answer": "a", "superior_answer": "b"}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a first turn"}]
    log = [
        {"prompt": "asked for twice", "router_score": 0.2},
        {"prompt": "Asked for  TWICE", "router_score": 0.2},
        {"prompt": turns},
        {"prompt": "asked of both models"},
        {"prompt": "asked of both models", **answers},
        {"prompt": " "},
    ]
    write_rows(tmp_path / "log.jsonl", log)
    (tmp_path / "more.csv").write_text("Prompt\nfrom a table\n")
    files = [str(tmp_path / "log.jsonl"), str(tmp_path / "more.csv")]
    assert read_unlabelled(files) == ["asked for twice", "a first turn", "from a table"]
    assert read_unlabelled([]) == []

    write_rows(tmp_path / "rows.jsonl", [*made_up_rows(40), row_of("asked for twice", SUPERIOR)])
    data = read_training_data([str(tmp_path / "rows.jsonl")], tmp_path / "none", 0, unlabelled_files=files)
    assert data.unlabelled == ["a first turn", "from a table"]

    write_rows(tmp_path / "log.jsonl", [{"prompt": "asked of both models", **answers}])
    with pytest.raises(InputError, match="no prompt in .*log.jsonl but those .* leave out --unlabelled_files"):
        read_unlabelled(files[:1])
    write_rows(tmp_path / "log.jsonl", [{"router_score": 0.5, "tokens": 3}])
    with pytest.raises(InputError, match="no prompt among the columns router_score, tokens"):
        read_unlabelled(files[:1])
