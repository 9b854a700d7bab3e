"""How far a labelling model agrees with people."""

import json
import re
from pathlib import Path

import pytest
from labelling_runs import label, question, rows, write_prompts
from openai_server import INFERIOR_ANSWER, SUPERIOR_ANSWER, completion

from create_dataset.agreement import agreement_report
from router_data import InputError, LabelledPrompt, LabelledQuestion


def write_questions(votes: dict[int, tuple[int, int, int]], shown: int = 0) -> None:
    lines = [json.dumps(question(n, wins, shown=n == shown)) for n, wins in votes.items()]
    Path("questions.jsonl").write_text("\n".join(lines) + "\n")


def test_agreement_with_people_ties_apart(serve, capsys):
    # superior wins, inferior wins, ties; the model calls odd questions SUPERIOR
    write_questions({1: (9, 1, 0), 2: (8, 2, 0), 3: (4, 4, 2), 4: (1, 5, 4), 5: (9, 0, 1), 6: (9, 1, 0)}, shown=6)
    server = serve(lambda p, *_: completion(SUPERIOR_ANSWER if int(p[-1]) % 2 else INFERIOR_ANSWER))
    assert label("--agreement", "--questions_file", "questions.jsonl") == 0
    said = capsys.readouterr().out
    assert "mt question 6" not in server.asked and len(server.asked) == 5
    assert "agreement on 5 of 5" in said
    # majority: 1 S, 2 S, 4 I, 5 S -> hits 1, 4, 5; stage 1: 1 S, 2 S, 3 I, 4 I, 5 S -> hits 1, 4, 5
    assert re.search(r"human majority +3 of 4, 75% \[30%, 95%\]; always ROUTE_TO_SUPERIOR would reach 75%", said)
    assert re.search(r"stage 1's label +3 of 5, 60% \[23%, 88%\]; always ROUTE_TO_SUPERIOR would reach 60%", said)
    assert "apart: 1 questions with as many wins on both sides, 1 labelled ROUTE_TO_SUPERIOR" in said
    assert "rank correlation" not in said, "there is no soft label"
    assert said.splitlines()[-1] == "next: python3 create_dataset/label_prompts.py --limit 1000 --dry_run"


def test_the_gain_is_compared_with_the_human_inferior_ratio(serve, capsys):
    Path("labelling.txt").write_text("Give inferior_quality and superior_quality.")
    # as the inferior ratio rises, so does the inferior quality; the superior one rises more where the gain is 0
    write_questions({n: (20 - 2 * n, 2 * n, 0) for n in range(1, 10)})
    answer = '{{"inferior_quality": {}, "superior_quality": {}}}'
    serve(lambda p, *_: completion(answer.format(int(p[-1]) / 10, 0.9 if p[-1] != "1" else 0.1)))
    assert label("--agreement", "--questions_file", "questions.jsonl") == 0
    said = capsys.readouterr().out
    found = re.search(r"rank correlation of the gain with the human inferior ratio (-0\.\d\d) \[(-\d\.\d\d), ", said)
    assert float(found[1]) == pytest.approx(-0.47, abs=0.01) and float(found[2]) <= float(found[1])
    assert re.search(r"rank correlation of superior_probability with the human inferior ratio -0\.\d\d", said)
    assert rows()[0]["inferior_quality"] == int(rows()[0]["prompt"][-1]) / 10


def test_nothing_labelled_is_no_error():
    questions = [LabelledQuestion(**question(1, (9, 1, 0)))]
    assert "agreement on 0 of 1" in agreement_report([], questions)
    row = LabelledPrompt(prompt="mt question 1", label="ROUTE_TO_SUPERIOR", superior_probability=0.9)
    assert "rank correlation" not in agreement_report([row], questions), "one question has no order"


def test_a_few_questions_have_an_interval_too():
    questions = [LabelledQuestion(**question(n, (9 - n, n, 0))) for n in (1, 2, 3)]
    labelled = [
        LabelledPrompt(prompt=q.prompt, label="ROUTE_TO_SUPERIOR", superior_probability=0.9 - q.inferior_ratio / 2)
        for q in questions
    ]
    assert "human inferior ratio -1.00 [-1.00, -1.00]" in agreement_report(labelled, questions)


def test_without_questions_the_remedy_is_named(serve):
    write_prompts(1)
    serve()
    with pytest.raises(InputError, match=r"no questions at none.jsonl; make them with: python3 dataset_analysis"):
        label("--agreement", "--questions_file", "none.jsonl")
