"""The rows that stage 3 trains and judges on: read, checked, without repeats, near duplicates kept in one part."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompt_files import first_user_turn, prompt_in, read_records
from router_data import (
    LABELS,
    SAMPLE_FILE,
    InputError,
    LabelledPrompt,
    LabelledQuestion,
    Outcome,
    expand_paths,
    has_both_answers,
    label_of,
    near_duplicate_groups,
    normalise_prompt,
    probability_from_gain,
    read_rows,
    row_type_of,
)

HELD_OUT = 0.1  # of the rows for validation, and again for the test
MAX_DRAWS = 20  # of a split, until every part has both labels


@dataclass
class Split:
    """The rows of one part."""

    rows: list[LabelledPrompt]

    @property
    def prompts(self) -> list[str]:
        """Their prompts."""
        return [row.prompt for row in self.rows]

    @property
    def soft_labels(self) -> np.ndarray:
        """Their superior probabilities by the labeller, 0..1, shape (n,)."""
        return np.array([row.soft_label for row in self.rows], dtype=np.float64)

    @property
    def labels(self) -> np.ndarray:
        """1.0 where the superior model is preferred, else 0.0, shape (n,)."""
        return (self.soft_labels >= 0.5).astype(np.float64)


@dataclass
class TrainingData:
    """Everything a run reads.

    Attributes:
        train, validation, test: the parts; near duplicates never lie in two of them.
        questions: the labelled MT-Bench questions that the labeller was not shown; may be empty.
        base_rate: share of superior labels among the rows of --train_files that were not held out for the test.
        counts: rows read, dropped and kept, by name, for the record.
        files: the files read.
        unlabelled: prompts without a label, none of them among the rows.
    """

    train: Split
    validation: Split
    test: Split
    questions: list[LabelledQuestion]
    base_rate: float
    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """What was read and dropped, in one line."""
        counts = self.counts
        auxiliary = f" ({counts['auxiliary']:,} of them auxiliary)" if "auxiliary" in counts else ""
        return (
            f"{counts['rows_read']:,} rows read, {counts['repeats_dropped']:,} repeats and "
            f"{counts['test_questions_dropped']:,} test questions dropped; training on {counts['train']:,}{auxiliary}, "
            f"validation {counts['validation']:,}, test {counts['test']:,}"
        )


def read_training_data(
    train_files: Sequence[str],
    questions_file: str | Path,
    seed: int,
    limit: int | None = None,
    auxiliary_files: Sequence[str] = (),
    trained: Set[str] = frozenset(),
    unlabelled_files: Sequence[str] = (),
) -> TrainingData:
    """Read, clean and split the rows.

    Args:
        train_files: labelled files or outcomes, or globs.
        questions_file: stage 1's questions; it may be absent.
        seed: of the split and of the draw where `limit` is given.
        limit: use only this many rows.
        auxiliary_files: rows that are only trained on.
        trained: `normalise_prompt` of prompts that the router to go on from knows: they never judge.
        unlabelled_files: files of prompts without labels.

    Raises:
        InputError: as `read_labelled_rows`, `split_rows` and `read_unlabelled`.
    """
    rows, counts, files = read_labelled_rows(train_files)
    questions = read_questions(questions_file)
    question_keys = {normalise_prompt(turn) for question in questions for turn in question.turns}
    kept = [row for row in rows if normalise_prompt(row.prompt) not in question_keys]
    counts["test_questions_dropped"] = len(rows) - len(kept)
    if limit and limit < len(kept):
        kept = random.Random(seed).sample(kept, limit)
    train, validation, test = split_rows(kept, seed, trained)
    base_rate = float(np.mean([*train.labels, *validation.labels]))
    if auxiliary_files:
        more, _, more_files = read_labelled_rows(auxiliary_files)
        more = without_near_duplicates(more, [*validation.prompts, *test.prompts, *question_keys])
        train.rows += more
        counts["auxiliary"] = len(more)
        files += more_files
    counts |= {"train": len(train.rows), "validation": len(validation.rows), "test": len(test.rows)}
    unseen = [question for question in questions if not question.in_labelling_prompt]
    known = {normalise_prompt(row.prompt) for row in rows}
    unlabelled = [prompt for prompt in read_unlabelled(unlabelled_files) if normalise_prompt(prompt) not in known]
    if unlabelled_files:
        counts["unlabelled"] = len(unlabelled)
    return TrainingData(train, validation, test, unseen, base_rate, counts, files, unlabelled)


def read_labelled_rows(patterns: Sequence[str]) -> tuple[list[LabelledPrompt], dict[str, int], list[str]]:
    """The labelled prompts of all files, exact repeats dropped; counts by name; the files.

    A row with `weak_score` and `strong_score` and no label is an outcome; its label is made from the scores.

    Raises:
        InputError: no file, an invalid row, or one prompt with two labels of the same labeller.
    """
    paths = expand_paths(patterns)
    label_by: dict[tuple, tuple[str, Path]] = {}
    rows, read = [], 0
    for path in paths:
        for row in read_rows(path, row_type_of(path)):
            read += 1
            labelled = label_outcome(row) if isinstance(row, Outcome) else row
            key = (normalise_prompt(labelled.prompt), labelled.labelled_by, labelled.labelling_prompt)
            if key not in label_by:
                label_by[key] = (labelled.label, path)
                rows.append(labelled)
            elif label_by[key][0] != labelled.label:
                raise InputError(
                    f"{path}: the prompt {labelled.prompt[:60]!r} is labelled {labelled.label}, but {label_by[key][0]} "
                    f"in {label_by[key][1]}, both by {labelled.labelled_by}; keep one of the two rows"
                )
    if not rows:
        raise InputError(f"no labelled prompts in {' '.join(map(str, paths))}")
    return rows, {"rows_read": read, "repeats_dropped": read - len(rows)}, list(map(str, paths))


def read_unlabelled(patterns: Sequence[str]) -> list[str]:
    """The prompts of files without labels, each once; of a conversation its first user turn.

    Prompts of a decision log that both models have answered are left out: `label_outcomes.py --answers` makes outcomes
    of them, to judge on.

    Raises:
        InputError: as `prompt_files.read_records` and `prompt_in`, or there is no prompt.
    """
    found: dict[str, str] = {}
    answered = set()
    for record in read_records(patterns):
        prompt = first_user_turn(prompt_in(record.fields))
        found.setdefault(normalise_prompt(prompt), prompt)
        if has_both_answers(record.fields):
            answered.add(normalise_prompt(prompt))
    prompts = [prompt for key, prompt in found.items() if key and key not in answered]
    if patterns and not prompts:
        raise InputError(
            f"no prompt in {' '.join(patterns)} but those that both models answered, which judge; leave out "
            "--unlabelled_files"
        )
    return prompts


def label_outcome(outcome: Outcome) -> LabelledPrompt:
    """An outcome as a labelled prompt, by the gain that was measured."""
    soft_label = probability_from_gain(outcome.strong_score - outcome.weak_score)
    return LabelledPrompt(
        prompt=outcome.prompt,
        label=label_of(soft_label),
        superior_probability=soft_label,
        labelled_by="outcome_gain",
        category=outcome.group,  # type: ignore[call-arg]
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


def split_rows(rows: list[LabelledPrompt], seed: int, trained: Set[str] = frozenset()) -> tuple[Split, Split, Split]:
    """Training, validation and test part; near duplicates are never in two of them, and `trained` only in the first.

    Raises:
        InputError: too few rows to leave some of both labels in every part.
    """
    groups = defaultdict(list)
    for row, group in zip(rows, near_duplicate_groups([row.prompt for row in rows]), strict=True):
        groups[group].append(row)
    known = {
        number for number, group in groups.items() if any(normalise_prompt(row.prompt) in trained for row in group)
    }
    order, draw = list(groups), random.Random(seed)
    for _ in range(MAX_DRAWS):
        draw.shuffle(order)
        parts: list[list[LabelledPrompt]] = [[], [], []]
        for number in order:
            held_out = next((part for part in (1, 2) if len(parts[part]) < HELD_OUT * len(rows)), 0)
            parts[0 if number in known else held_out].extend(groups[number])
        if all(len({row.label for row in part}) == len(LABELS) for part in parts):
            return Split(parts[0]), Split(parts[1]), Split(parts[2])
    labels = Counter(row.label for row in rows)
    counts = " and ".join(f"{labels[label]:,} {label}" for label in LABELS)
    raise InputError(
        f"{len(rows)} rows are too few to train and judge on: every part needs both labels, and there are {counts}"
        f"{f', in {len(known)} groups that the router knows already' if known else ''}; add rows, for example the "
        f"sample's: {SAMPLE_FILE}"
    )


def without_near_duplicates(rows: list[LabelledPrompt], prompts: Sequence[str]) -> list[LabelledPrompt]:
    """The rows whose prompt is a near duplicate of none of `prompts`."""
    groups = near_duplicate_groups([*prompts, *(row.prompt for row in rows)])
    taken = set(groups[: len(prompts)])
    return [row for row, group in zip(rows, groups[len(prompts) :], strict=True) if group not in taken]
