"""What a router is judged on: outcomes, labelled prompts, MT-Bench questions, probes; and what it was trained on."""

import argparse
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetuning_model.labelled_rows import read_training_rows
from router_data import (
    InputError,
    LabelledPrompt,
    LabelledQuestion,
    Outcome,
    expand_paths,
    near_duplicate_groups,
    normalise_prompt,
    read_rows,
)

QUESTIONS_FILE = "final-datasets/mt_bench_questions_labelled.jsonl"
PROBES = Path(__file__).parents[1] / "probes"


@dataclass
class EvaluationSet:
    """Prompts to judge on, and what is known of each.

    Attributes:
        targets: name of a target -> labels or grades 0..1, shape (n,); superior from 0.5 on.
        weak, strong: quality of either model's answer, shape (n,), where the rows are outcomes.
        human_preference: 1 - the human preference ratio, shape (n,), of MT-Bench questions.
    """

    name: str
    kind: str
    prompts: list[str]
    targets: dict[str, np.ndarray]
    categories: list[str]
    languages: list[str]
    weak: np.ndarray | None = None
    strong: np.ndarray | None = None
    human_preference: np.ndarray | None = None
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    near_duplicates: np.ndarray | None = None

    @property
    def gain(self) -> np.ndarray:
        return self.strong - self.weak


def read_sets(args: argparse.Namespace, model_save_dir: Path) -> list[EvaluationSet]:
    """Every file as a set of its own.

    Raises:
        InputError: a file is missing, malformed or holds no prompt to judge on.
    """
    sets = [outcome_set(path, list(read_rows(path, Outcome))) for path in expand_paths(args.outcomes)]
    sets += [labelled_set(path.stem, "labelled prompts", list(read_rows(path))) for path in expand_paths(args.labelled)]
    if not sets:
        own = own_test_rows(model_save_dir)
        sets += [labelled_set("test_part", "the checkpoint's own test part: in domain", own)] if own else []
    if args.questions_file or Path(QUESTIONS_FILE).exists():
        sets.append(question_set(args.questions_file or QUESTIONS_FILE))
    for number, each in enumerate(sets):
        if not each.prompts:
            raise InputError(f"{each.name} holds no prompts to judge on")
        if any(each.name == other.name for other in sets[:number]):
            each.name += f"_{number + 1}"
    return [limited(each, args.limit, args.seed) for each in sets]


def outcome_set(path: Path, rows: list[Outcome]) -> EvaluationSet:
    weak, strong = (
        np.array([getattr(row, key) for row in rows], dtype=float) for key in ("weak_score", "strong_score")
    )
    return EvaluationSet(
        path.stem,
        "outcomes",
        [row.prompt for row in rows],
        {
            "the inferior model fails (its score is below 0.5)": (weak < 0.5).astype(float),
            "the superior model gains (its score is the higher one)": (strong > weak).astype(float),
        },
        [row.group or "none" for row in rows],
        [language_of(row) for row in rows],
        weak,
        strong,
    )


def labelled_set(name: str, kind: str, rows: Sequence[LabelledPrompt]) -> EvaluationSet:
    return EvaluationSet(
        name,
        kind,
        [row.prompt for row in rows],
        {"the label says that the superior model is needed": np.array([row.soft_label for row in rows], dtype=float)},
        [str(getattr(row, "category", None) or row.source or "none") for row in rows],
        [language_of(row) for row in rows],
    )


def question_set(path: str | Path) -> EvaluationSet:
    """The questions that the labeller was not shown."""
    rows = [row for row in read_rows(path, LabelledQuestion) if not row.in_labelling_prompt]
    each = labelled_set("mt_bench", "labelled MT-Bench questions that the labeller was not shown", rows)
    each.human_preference = 1 - np.array([row.inferior_ratio for row in rows])
    return each


def own_test_rows(model_save_dir: Path) -> list[LabelledPrompt]:
    """The rows that the checkpoint's training left out for its test, with their grades."""
    path = model_save_dir / "predictions.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [LabelledPrompt(**row | {"superior_probability": row["target"]}) for row in rows]


def limited(each: EvaluationSet, limit: int | None, seed: int) -> EvaluationSet:
    """At most `limit` of its prompts, drawn by seed."""
    n = len(each.prompts)
    if limit is None or limit >= n:
        return each
    keep = sorted(random.Random(seed).sample(range(n), limit))
    for key, value in vars(each).items():
        if isinstance(value, list):
            setattr(each, key, [value[i] for i in keep])
        elif isinstance(value, np.ndarray):
            setattr(each, key, value[keep])
    each.targets = {name: values[keep] for name, values in each.targets.items()}
    return each


def language_of(row) -> str:
    """The row's `language`; where it has none, the script that most letters of its prompt are written in."""
    if getattr(row, "language", None):
        return str(row.language)
    letters = [character for character in row.prompt[:1000] if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "unknown").split()[0].capitalize() for letter in letters)
    return f"{scripts.most_common(1)[0][0]} script" if scripts else "no letters"


def training_rows(args: argparse.Namespace, model_save_dir: Path, run: dict) -> tuple[list[LabelledPrompt], list[str]]:
    """The rows the checkpoint was trained on (its validation and test part left out), and remarks on them."""
    files = args.train_files or run.get("train_files") or []
    missing = [path for path in files if not Path(path).exists()] if not args.train_files else []
    if missing or not files:
        why = f"{', '.join(missing)} is missing" if missing else "the checkpoint names no training files"
        return [], [f"{why}: no trained baselines, and no look for near duplicates; name the files with --train_files"]
    rows, _ = read_training_rows(files, run.get("arguments", {}).get("outcome_target", "fail"))
    left_out = set()
    for name in ("predictions.jsonl", "validation_predictions.jsonl"):
        if (model_save_dir / name).exists():
            lines = (model_save_dir / name).read_text(encoding="utf-8").splitlines()
            left_out |= {normalise_prompt(json.loads(line)["prompt"]) for line in lines if line.strip()}
    return [row for row in rows if normalise_prompt(row.prompt) not in left_out], []


def probe_set() -> EvaluationSet:
    """The prompts of all ordered pairs, easier ones first, and of all ladders, as one set to score."""
    pairs, steps = read_probes("ordered_pairs.jsonl"), read_probes("ladders.jsonl")
    prompts = [row[key] for key in ("easier", "harder") for row in pairs]
    prompts += [prompt for row in steps for prompt in row["prompts"]]
    return EvaluationSet("probes", "probes", prompts, {}, [], [])


def read_probes(name: str) -> list[dict]:
    path = PROBES / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def mark_near_duplicates(sets: list[EvaluationSet], train: list[LabelledPrompt]) -> None:
    """Fill each set's `near_duplicates`: which prompts share a group of near duplicates with a training row."""
    prompts = [row.prompt for row in train] + [prompt for each in sets for prompt in each.prompts]
    groups = np.array(near_duplicate_groups(prompts))
    copies = np.isin(groups[len(train) :], groups[: len(train)])
    ends = np.cumsum([len(each.prompts) for each in sets])
    for each, part in zip(sets, np.split(copies, ends[:-1]), strict=True):
        each.near_duplicates = part
