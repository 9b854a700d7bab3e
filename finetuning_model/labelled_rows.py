"""The rows that stage 3 trains and judges on: read, graded, without repeats, near copies kept in one part."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_data import (
    InputError,
    LabelledPrompt,
    LabelledQuestion,
    Outcome,
    expand_paths,
    label_of,
    near_copy_groups,
    prompt_key,
    read_rows,
)

HELD_OUT = 0.1  # of the rows for validation, and again for the test


@dataclass
class Split:
    """Rows of one part, their targets (superior probabilities, shape (n,)) and their labels (1 is superior)."""

    rows: list[LabelledPrompt]

    @property
    def prompts(self) -> list[str]:
        return [row.prompt for row in self.rows]

    @property
    def targets(self) -> np.ndarray:
        return np.array([row.target for row in self.rows], dtype=np.float64)

    @property
    def labels(self) -> np.ndarray:
        return (self.targets >= 0.5).astype(np.float64)


def read_training_rows(patterns: list[str], outcome_target: str) -> tuple[list[LabelledPrompt], dict]:
    """Labelled prompts of all files, exact repeats dropped, and what to say of them.

    A row with `weak_score` and `strong_score` and no label is an outcome; its grade is made from the scores.

    Raises:
        InputError: no file, an invalid row, or one prompt with two labels of the same labeller.
    """
    paths = expand_paths(patterns)
    label_by: dict[tuple, tuple[str, Path]] = {}
    rows, read = [], 0
    for path in paths:
        for row in read_rows(path, _row_type(path)):
            read += 1
            row = _graded(row, outcome_target) if isinstance(row, Outcome) else row
            key = (prompt_key(row.prompt), row.labelled_by, row.labelling_prompt)
            if key not in label_by:
                label_by[key] = (row.label, path)
                rows.append(row)
            elif label_by[key][0] != row.label:
                raise InputError(
                    f"{path}: the prompt {row.prompt[:60]!r} is labelled {row.label}, but {label_by[key][0]} in "
                    f"{label_by[key][1]}, both by {row.labelled_by}; keep one of the two rows"
                )
    if not rows:
        raise InputError(f"no labelled prompts in {' '.join(map(str, paths))}")
    return rows, {"files": list(map(str, paths)), "rows_read": read, "repeats_dropped": read - len(rows)}


def _row_type(path: Path) -> type:
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"")
    return Outcome if b'"weak_score"' in first and b'"label"' not in first else LabelledPrompt


def _graded(outcome: Outcome, target: str) -> LabelledPrompt:
    """An outcome as a graded prompt: how bad the inferior answer was, or how much better the other."""
    gain = outcome.strong_score - outcome.weak_score
    grade = 1 - outcome.weak_score if target == "fail" else (1 + gain) / 2
    if target == "gain" and gain == 0:
        grade = np.nextafter(0.5, 0)  # a tie does not need the superior model
    grade = min(1.0, max(0.0, grade))
    return LabelledPrompt(
        prompt=outcome.prompt,
        label=label_of(grade),
        superior_probability=grade,
        labelled_by=f"outcome_{target}",
        category=outcome.group,
    )


def read_questions(path: str | Path) -> list[LabelledQuestion]:
    """The labelled MT-Bench questions, or none, with a line that says how to make them."""
    if not Path(path).exists():
        print(
            f"no questions at {path}: going on without them; to be judged on them as well, first run: "
            "python3 dataset_analysis/analyse_human_judgments.py"
        )
        return []
    return list(read_rows(path, LabelledQuestion))


def split_rows(rows: list[LabelledPrompt], seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test part; near copies are never in two of them.

    Raises:
        InputError: too few rows to leave some of both labels in every part.
    """
    groups = defaultdict(list)
    for row, group in zip(rows, near_copy_groups([row.prompt for row in rows]), strict=True):
        groups[group].append(row)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    parts: list[list[LabelledPrompt]] = [[], [], []]
    for group in order:
        held_out = next((part for part in (1, 2) if len(parts[part]) < HELD_OUT * len(rows)), 0)
        parts[held_out].extend(group)
    for part in parts:
        if len({row.label for row in part}) < 2:
            raise InputError(
                f"{len(rows)} rows are too few to train and judge on: every part needs both labels; add rows, for "
                "example the sample's: final-datasets/sample/router_dataset_sample.jsonl"
            )
    return Split(parts[0]), Split(parts[1]), Split(parts[2])


def without_near_copies(rows: list[LabelledPrompt], prompts: Sequence[str]) -> list[LabelledPrompt]:
    """The rows whose prompt is a near copy of none of `prompts`."""
    groups = near_copy_groups([*prompts, *(row.prompt for row in rows)])
    taken = set(groups[: len(prompts)])
    return [row for row, group in zip(rows, groups[len(prompts) :], strict=True) if group not in taken]
