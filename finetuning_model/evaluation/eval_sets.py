"""What a router is judged on: outcomes, labelled prompts, MT-Bench questions, probes; and what it was trained on."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetuning_model.labelled_rows import read_labelled_rows
from prompt_files import Record, first_user_turn, prompt_in, read_records
from router_data import (
    EVEN_GAIN,
    InputError,
    LabelledPrompt,
    LabelledQuestion,
    Outcome,
    Row,
    check_row,
    expand_paths,
    near_duplicate_groups,
    normalise_prompt,
    probability_from_gain,
    read_json_lines,
    read_rows,
)
from router_model import PREDICTIONS_FILE, VALIDATION_FILE, script_of

PROBES = Path(__file__).parents[1] / "probes"
OUTCOMES = "outcomes of two models"
GAINS = f"the superior model's answer is better by {EVEN_GAIN:g} or more"
FAILS = "the inferior model fails (its score is below 0.5)"
LABELLED = "the label says that the superior model is needed"
MAX_POOLED_ROWS = 400  # of each set, so that no large set speaks for all kinds of prompts


@dataclass
class EvalSet:
    """Prompts to judge on, and what is known of each; lists and arrays have one entry per prompt, or none if unknown.

    Attributes:
        name: what reports and plots call it.
        kind: where the truth comes from, in words.
        prompts: the prompts.
        labels: what a label says -> soft labels 0..1, shape (n,); superior from 0.5 on. The first one leads the report.
        categories, languages: their names.
        weak, strong: quality of the inferior and the superior model's answer, shape (n,), where the rows are outcomes.
        human_preference: 1 - the human preference ratio, shape (n,), of MT-Bench questions.
        scores: scorer -> superior scores, shape (n,); the router's first.
        near_duplicates: whether a training row is a near duplicate, shape (n,).
    """

    name: str
    kind: str
    prompts: list[str]
    labels: dict[str, np.ndarray]
    categories: list[str]
    languages: list[str]
    weak: np.ndarray = field(default_factory=lambda: np.empty(0))
    strong: np.ndarray = field(default_factory=lambda: np.empty(0))
    human_preference: np.ndarray = field(default_factory=lambda: np.empty(0))
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    near_duplicates: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    @property
    def gain(self) -> np.ndarray:
        """The superior model's quality minus the inferior model's, shape (n,)."""
        return self.strong - self.weak

    @property
    def has_outcomes(self) -> bool:
        """Whether it is known how good both models' answers are."""
        return len(self.weak) > 0

    @property
    def has_gap(self) -> bool:
        """Whether these are outcomes with a gap to recover: the superior model does better in all."""
        return self.gain.sum() > 0

    @property
    def first_labels(self) -> np.ndarray:
        """The labels that lead the report, 0 or 1, shape (n,)."""
        return (next(iter(self.labels.values())) >= 0.5).astype(np.float64)

    def take(self, rows: Sequence[int] | np.ndarray) -> "EvalSet":
        """The set of these rows alone."""

        def part(value):
            if isinstance(value, dict):
                return {key: part(values) for key, values in value.items()}
            if isinstance(value, np.ndarray):
                return value[rows] if len(value) else value
            return [value[i] for i in rows] if isinstance(value, list) else value

        return EvalSet(**{name: part(value) for name, value in vars(self).items()})

    def at_most(self, rows: int | None, seed: int) -> "EvalSet":
        """At most so many rows, drawn by seed."""
        n = len(self.prompts)
        return self if rows is None or rows >= n else self.take(sorted(random.Random(seed).sample(range(n), rows)))


def read_sets(
    outcomes: Sequence[str], labelled: Sequence[str], questions_file: Path, model_save_dir: Path
) -> list[EvalSet]:
    """Every file as a set of its own; without any file the test part of the checkpoint.

    Args:
        outcomes, labelled: files or globs of any kind that `read_records` reads.
        questions_file: labelled MT-Bench questions; may be absent.
        model_save_dir: the checkpoint's folder.

    Raises:
        InputError: a file is missing, malformed or holds no prompt to judge on, or there is nothing at all.
    """
    sets = [outcome_set(path.name.split(".")[0], read_checked(path, Outcome)) for path in expand_paths(outcomes)]
    for path in expand_paths(labelled):
        sets.append(labelled_set(path.name.split(".")[0], "labelled prompts", read_checked(path, LabelledPrompt)))
    if not sets and (own := read_predictions(model_save_dir / PREDICTIONS_FILE)):
        sets.append(labelled_set("test_part", "the checkpoint's own test part: in domain", own))
    if questions_file.exists():
        sets.append(question_set(questions_file))
    if not sets:
        raise InputError(f"{model_save_dir} has no test part of its own; name files with --outcomes or --labelled")
    for number, eval_set in enumerate(sets):
        if not eval_set.prompts:
            raise InputError(f"{eval_set.name} holds no prompts to judge on")
        if any(eval_set.name == other.name for other in sets[:number]):
            eval_set.name += f"_{number + 1}"
    return sets


def read_checked(path: Path, row_type: type[Row]) -> list[Row]:
    """The rows of a file of any kind that `read_records` reads, checked.

    Raises:
        InputError: the file can't be read, or a row is not valid; names the file, the row and the field.
    """
    return [as_row(record, row_type, path) for record in read_records([path])]


def as_row(record: Record, row_type: type[Row], path: Path) -> Row:
    """A record of any file as a row of ours; the prompt's column may have another of the usual names.

    Raises:
        InputError: it is not valid; names the file, the row and the field.
    """
    fields = {name: value for name, value in record.fields.items() if value != ""}  # empty cells of a CSV file
    if not isinstance(fields.get("prompt"), str):
        fields["prompt"] = first_user_turn(prompt_in(record.fields))
    return check_row(fields, row_type, f"{path}, row {record.number}")


def outcome_set(name: str, rows: Sequence[Outcome]) -> EvalSet:
    """Outcomes as a set; its labels say where the superior model gains, and where the inferior one fails."""
    weak = np.array([row.weak_score for row in rows], dtype=float)
    strong = np.array([row.strong_score for row in rows], dtype=float)
    labels = {GAINS: np.array([probability_from_gain(gain) for gain in strong - weak])}
    if len(rows) and is_in_unit_interval(weak):
        labels[FAILS] = (weak < 0.5).astype(float)
    categories = [row.group or "none" for row in rows]
    prompts, languages = [row.prompt for row in rows], list(map(language_of, rows))
    return EvalSet(name, OUTCOMES, prompts, labels, categories, languages, weak, strong)


def labelled_set(name: str, kind: str, rows: Sequence[LabelledPrompt]) -> EvalSet:
    """Labelled prompts as a set; the labeller's soft label is the truth."""
    labels = {LABELLED: np.array([row.soft_label for row in rows], dtype=float)}
    categories = [str(getattr(row, "category", None) or row.source or "none") for row in rows]
    return EvalSet(name, kind, [row.prompt for row in rows], labels, categories, list(map(language_of, rows)))


def question_set(path: Path) -> EvalSet:
    """The MT-Bench questions that the labeller was not shown."""
    rows = [row for row in read_rows(path, LabelledQuestion) if not row.in_labelling_prompt]
    questions = labelled_set("mt_bench", "labelled MT-Bench questions that the labeller was not shown", rows)
    questions.human_preference = 1 - np.array([row.inferior_ratio for row in rows])
    return questions


def read_predictions(path: Path) -> list[LabelledPrompt]:
    """The labelled rows of a checkpoint's predictions; none where the file is missing.

    Files of the earlier form keep the soft label in `target` and the router's score in `superior_probability`.
    """
    if not path.exists():
        return []
    return [
        check_row(
            {**fields, "superior_probability": fields.get("target", fields.get("superior_probability"))},
            LabelledPrompt,
            where,
        )
        for where, fields in read_json_lines(path)
    ]


def language_of(row: LabelledPrompt | Outcome) -> str:
    """The row's `language`; where it has none, the script that most letters of its prompt are written in."""
    if language := getattr(row, "language", None):
        return str(language)
    letters = [character for character in row.prompt[:1000] if character.isalpha()]
    scripts = Counter(script_of(letter).capitalize() for letter in letters)
    return f"{scripts.most_common(1)[0][0]} script" if scripts else "no letters"


def is_in_unit_interval(values: np.ndarray) -> bool:
    """Whether all values lie in 0..1, as probabilities do and as qualities should."""
    return bool(values.min() >= 0 and values.max() <= 1)


def pool_small(names: Sequence[str], most: int, fewest_rows: int = 1) -> list[str]:
    """The names of each row's category, where the smallest categories share the name "other (17 categories)".

    Args:
        names: a category per row.
        most: categories that may be left, the pooled one included.
        fewest_rows: categories with fewer are pooled, however many there are.
    """
    counts = Counter(names).most_common()
    kept = [name for name, count in counts if count >= fewest_rows][: most - 1]
    if len(counts) - len(kept) < 2:  # one alone is not worth pooling
        return list(names)
    other = f"other ({len(counts) - len(kept)} categories)"
    return [name if name in kept else other for name in names]


def pooled_set(sets: Sequence[EvalSet], seed: int) -> EvalSet:
    """At most MAX_POOLED_ROWS of each set's prompts, drawn by seed, in one set whose categories are the sets.

    Of scorers and labels only those that every set has are kept.
    """
    parts = [eval_set.at_most(MAX_POOLED_ROWS, seed) for eval_set in sets]

    def joined(dicts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        names = [name for name in dicts[0] if all(name in values for values in dicts)]
        return {name: np.concatenate([values[name] for values in dicts]) for name in names}

    return EvalSet(
        name="all kinds pooled",
        kind=f"{OUTCOMES}, at most {MAX_POOLED_ROWS} prompts of each of {len(sets)} sets",
        prompts=[prompt for part in parts for prompt in part.prompts],
        labels=joined([part.labels for part in parts]),
        categories=[part.name for part in parts for _ in part.prompts],
        languages=[language for part in parts for language in part.languages],
        weak=np.concatenate([part.weak for part in parts]),
        strong=np.concatenate([part.strong for part in parts]),
        scores=joined([part.scores for part in parts]),
        near_duplicates=np.concatenate([part.near_duplicates for part in parts]),
    )


def probe_ladders() -> dict[str, list[dict]]:
    """Our own prompts in order of difficulty, each row with a `kind` and `prompts` from easy to hard; pairs are two."""
    pairs = [{"kind": row["kind"], "prompts": [row["easier"], row["harder"]]} for row in read_probes("ordered_pairs")]
    return {"ordered_pairs": pairs, "ladders": read_probes("ladders")}


def probe_set() -> EvalSet:
    """The prompts of `probe_ladders`, row after row, as one set to score."""
    prompts = [prompt for rows in probe_ladders().values() for row in rows for prompt in row["prompts"]]
    return EvalSet("probes", "probes", prompts, {}, [], [])


def read_probes(name: str) -> list[dict]:
    """The rows of a file of probes; none where it is missing."""
    path = PROBES / f"{name}.jsonl"
    return [row for _, row in read_json_lines(path)] if path.exists() else []


def training_rows(
    train_files: Sequence[str] | None, model_save_dir: Path, run: dict
) -> tuple[list[LabelledPrompt], list[str]]:
    """The rows that the checkpoint was trained on, its validation and test part left out, and remarks on them.

    Args:
        train_files: where they are; None: where run.json says.
        run: the checkpoint's run.json.
    """
    files = train_files or run.get("train_files") or []
    missing = [] if train_files else [path for path in files if not Path(path).exists()]
    if missing or not files:
        why = f"{', '.join(missing)} is missing" if missing else "the checkpoint names no training files"
        return [], [f"{why}: no trained baselines, and no look for near duplicates; name the files with --train_files"]
    rows, _, _ = read_labelled_rows(files)
    held_out = [row for name in (PREDICTIONS_FILE, VALIDATION_FILE) for row in read_predictions(model_save_dir / name)]
    left_out = {normalise_prompt(row.prompt) for row in held_out}
    return [row for row in rows if normalise_prompt(row.prompt) not in left_out], []


def mark_near_duplicates(sets: Sequence[EvalSet], train: Sequence[LabelledPrompt]) -> None:
    """Fill each set's `near_duplicates`: which prompts share a group of near duplicates with a training row."""
    prompts = [row.prompt for row in train] + [prompt for eval_set in sets for prompt in eval_set.prompts]
    groups = np.array(near_duplicate_groups(prompts))
    copies = np.isin(groups[len(train) :], groups[: len(train)])
    ends = np.cumsum([len(eval_set.prompts) for eval_set in sets])
    for eval_set, part in zip(sets, np.split(copies, ends[:-1]), strict=True):
        eval_set.near_duplicates = part
