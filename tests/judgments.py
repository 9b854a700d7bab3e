"""Votes of invented models on ten questions, in the shape of lmsys/mt_bench_human_judgments."""

from pathlib import Path

import numpy as np
import pandas as pd

from dataset_analysis import analyse_human_judgments as stage
from router_data import LabelledQuestion, read_rows

TIERS = ["--superior_models", "big-1", "big-2", "--inferior_models", "small-1", "small-2"]

# question_id: superior wins, ties, inferior wins
VOTES = {
    81: (10, 0, 0),
    82: (12, 2, 0),
    83: (3, 2, 5),
    84: (0, 60, 0),
    121: (14, 0, 0),
    122: (9, 1, 2),
    123: (2, 2, 6),
    124: (5, 0, 5),
    125: (10, 0, 20),  # the inferior models lose the whole first turn and win the whole second
    126: (8, 1, 1),
}
RATIOS = {81: 0, 82: 1 / 14, 83: 0.6, 84: 0.5, 121: 0, 122: 2.5 / 12, 123: 0.7, 124: 0.5, 125: 2 / 3, 126: 0.15}
HARDEST_FIRST = [121, 81, 82, 126, 122, 84, 124, 83, 125, 123]


def text(number: int) -> str:
    return f"Question {number}:\nwhat does a $number of ${number} | buy?"


def vote(number: int, i: int, score: float, models=("big", "small"), turn: int | None = None) -> dict:
    """A vote; every second one shows the inferior model first."""
    superior, inferior = f"{models[0]}-{1 + i % 2}", f"{models[1]}-{1 + i // 2 % 2}"
    a, b = (superior, inferior) if i % 3 else (inferior, superior)
    winner = "tie" if score == 0.5 else "model_a" if (score == 1) == (a == inferior) else "model_b"
    conversation = [
        {"role": "user", "content": text(number)},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": f"follow-up {number}"},
        {"role": "assistant", "content": "another"},
    ]
    return {
        "question_id": number,
        "model_a": a,
        "model_b": b,
        "winner": winner,
        "judge": f"expert_{i // 2}",
        "conversation_a": conversation,
        "conversation_b": conversation,
        "turn": turn or 1 + i % 2,
    }


def human_votes() -> pd.DataFrame:
    rows = []
    for number, counts in VOTES.items():
        scores = np.repeat([0, 0.5, 1], counts)
        for i, score in enumerate(scores):
            turn = 1 + (score == 1) if number == 125 else None
            rows.append(vote(number, i, score, turn=turn))
    for number in [*VOTES, 160]:  # votes inside a tier; question 160 has no others
        rows += [vote(number, 3, 1, models=("big", "big")), vote(number, 4, 1, models=("small", "small"))]
    return pd.DataFrame(rows)


def gpt4_votes() -> pd.DataFrame:
    rows = [vote(number, i, 0) for number in VOTES for i in range(4)]
    rows[0]["winner"] = "tie (inconsistent)"
    return pd.DataFrame(rows).assign(judge="gpt4_pair")


def write_votes(rows: pd.DataFrame, path: Path) -> None:
    """As JSONL, which is read at once; a parquet file is read by a process of its own, which takes a second."""
    rows.to_json(path, orient="records", lines=True)


def analyse_judgments(dataset: Path | str, output: Path, *flags: str) -> dict[int, LabelledQuestion]:
    """Run stage 1; returns the labelled questions by number, in the order of the file."""
    stage.main(["--dataset", str(dataset), "--output_dir", str(output), *TIERS, *flags])
    rows = read_rows(output / "mt_bench_questions_labelled.jsonl", LabelledQuestion)
    return {row.question_id: row for row in rows}
