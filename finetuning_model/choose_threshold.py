"""Choose the threshold that meets a target on your own prompts: a share of superior calls, a quality, or a budget.

Reads   a checkpoint's folder; your prompts: JSONL with a `prompt` column, labelled rows, outcomes of both models, or
        plain text with one prompt a line
Writes  with --save: `threshold` and `thresholds` in the checkpoint's router.json

How good an answer is comes from the best that the file knows: measured scores (outcomes), grades (labelled rows: the
inferior model's answer is good enough with probability 1 - superior probability), else the router's own probabilities.

Example:
    python3 finetuning_model/choose_threshold.py --prompts my_prompts.jsonl --at_most_superior 20
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from router_data import InputError, LabelledPrompt, Outcome, expand_paths, read_rows, run_script
from router_model import Router, newest_checkpoint

CHECKPOINT_SUPERIOR_PERCENTS = (10, 20, 30, 50)
CHECKPOINT_QUALITY_PERCENTS = (90, 95, 99)
EPSILON = 1e-9  # a share that misses its target by rounding meets it


class PlainPrompt(BaseModel):
    """A prompt without a grade. Other fields are passed over."""

    model_config = ConfigDict(extra="ignore")

    prompt: str

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is blank")
        return prompt


def read_prompts(patterns: list[str]) -> tuple[list[str], np.ndarray | None, np.ndarray | None, str]:
    """Prompts of JSONL or plain-text files, and what is known of the answers.

    Returns:
        The prompts; the inferior and the superior model's quality, each shape (n,), or None where nothing is known;
        and a phrase that says where the quality comes from.

    Raises:
        InputError: a file can't be read, holds no prompt, or is of another kind than the first.
    """
    kinds, rows = {}, []
    for path in expand_paths(patterns):
        row_type = _row_type(path)
        kinds[row_type] = path
        rows += read_rows(path, row_type) if row_type else _read_lines(path)
    if len(kinds) > 1:
        raise InputError(f"{' and '.join(map(str, kinds.values()))} are of different kinds; give one kind at a time")
    prompts = [row.prompt for row in rows]
    if Outcome in kinds:
        weak, strong = (np.array([getattr(row, name) for row in rows]) for name in ("weak_score", "strong_score"))
        return prompts, weak, strong, "measured on outcomes"
    if LabelledPrompt in kinds:
        grades = np.array([row.soft_label for row in rows])
        return prompts, 1 - grades, np.ones(len(rows)), "expected from the grades of the labelled rows"
    return prompts, None, None, "expected from the router's own probabilities: no prompt is graded"


def _row_type(path: Path) -> type[BaseModel] | None:
    """The type of a file's rows by its first line; None for plain text."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not first:
        raise InputError(f"{path} holds no prompts")
    if not first.lstrip().startswith("{") and path.suffix != ".jsonl":
        return None
    try:
        fields = json.loads(first)
    except json.JSONDecodeError:
        fields = {}
    if {"weak_score", "strong_score"} & set(fields):
        return Outcome
    return LabelledPrompt if "label" in fields else PlainPrompt


def _read_lines(path: Path) -> list[PlainPrompt]:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [PlainPrompt(prompt=line) for line in text.splitlines() if line.strip()]


def save_threshold(model_save_dir: Path, settings: BaseModel, name: str, threshold: float) -> None:
    """Make `threshold` the checkpoint's default and list it under `name`, in its router.json."""
    update = {"threshold": threshold, "thresholds": {**settings.thresholds, name: threshold}}
    path = model_save_dir / "router.json"
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(settings.model_copy(update=update).model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def describe(name: str, threshold: float, scores, weak, strong, prices: tuple[float, float] | None) -> str:
    """One line of the table: the threshold, and what it brings on these prompts."""
    share = np.mean(scores >= threshold)
    quality = quality_estimate(scores, threshold, weak, strong)
    random = 1 - (1 - share) * (1 - weak.sum() / strong.sum())
    cells = f"{name:<24} {threshold:>9.6g} {share:>9.1%}"
    interval = f"{quality.value:.1%} [{quality.low:.1%}, {quality.high:.1%}]"
    cells += f" {interval:>24} {random:>9.1%}"
    return cells + (f" {cost(share, *prices):>12.4g}" if prices else "")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True, metavar="FILE", help="your prompts; files or globs")
    parser.add_argument("--model_save_dir", type=Path, help="the checkpoint's folder (default: the newest in ./models)")
    parser.add_argument("--hf_model_name", help="where the tokenizer comes from if the folder has none (a hub id)")
    parser.add_argument(
        "--at_most_superior", type=float, metavar="PERCENT", help="target: at most this to the superior model, 0..100"
    )
    parser.add_argument(
        "--at_least_quality",
        type=float,
        metavar="PERCENT",
        help="target: at least this of the superior model's quality",
    )
    parser.add_argument(
        "--at_most_cost", type=float, metavar="MONEY", help="target: at most this per 1,000 prompts; needs both prices"
    )
    parser.add_argument(
        "--price_superior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the superior model alone"
    )
    parser.add_argument(
        "--price_inferior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the inferior model alone"
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="NAME",
        help="make the threshold the checkpoint's default, and list it in router.json under this name (default: one "
        "made of the targets)",
    )
    args = parser.parse_args(argv)
    if (args.price_superior is None) != (args.price_inferior is None):
        parser.error("--price_superior and --price_inferior go together")
    if args.at_most_cost is not None and args.price_superior is None:
        parser.error("--at_most_cost needs --price_superior and --price_inferior, each per 1,000 prompts")
    if args.save is not None and {args.at_most_superior, args.at_least_quality, args.at_most_cost} == {None}:
        parser.error("--save needs a target, for example --at_most_superior 20")
    return args


def main(argv: list[str] | None = None) -> None:
    # 1. Read the prompts and what is known of their answers.
    args = parse_args(argv)
    prompts, weak, strong, origin = read_prompts(args.prompts)
    prices = (args.price_superior, args.price_inferior) if args.price_superior is not None else None
    targets = []
    if args.at_most_superior is not None:
        targets.append(at_most_superior(args.at_most_superior))
    if args.at_least_quality is not None:
        targets.append(at_least_quality(args.at_least_quality))
    if args.at_most_cost is not None:
        targets.append(at_most_cost(args.at_most_cost, *prices))

    # 2. Score them.
    model_save_dir = args.model_save_dir or newest_checkpoint()
    router = Router.load(model_save_dir, args.hf_model_name)
    scores = router.score(prompts)
    if weak is None:
        weak, strong = 1 - scores, np.ones(len(scores))
    curve = tradeoff(scores, weak, strong)

    # 3. Choose, and say what the choice brings beside the present threshold and a random router of the same cost.
    print(f"{len(prompts)} prompts, scored by {model_save_dir}; quality {origin}.\n")
    print(
        f"{'':<24} {'threshold':>9} {'superior':>9} {'quality [95% interval]':>24} {'random':>9}"
        + (f" {'per 1,000':>12}" if prices else "")
    )
    show = partial(describe, scores=scores, weak=weak, strong=strong, prices=prices)
    print(show("now", router.settings.threshold))
    if not targets:
        for percent in CHECKPOINT_SUPERIOR_PERCENTS:
            print(show(f"at most {percent}% superior", choose(curve, at_most_superior(percent))))
        for percent in CHECKPOINT_QUALITY_PERCENTS:
            print(show(f"at least {percent}% quality", choose(curve, at_least_quality(percent))))
        return
    threshold = choose(curve, *targets)
    print(show("chosen", threshold))
    print(f"\n{' and '.join(target.text for target in targets)}: --threshold {threshold}")

    # 4. Keep it.
    if args.save is not None:
        name = args.save or "_and_".join(target.key for target in targets)
        save_threshold(model_save_dir, router.settings, name, threshold)
        print(f"written to {model_save_dir / 'router.json'} as {name}, and as the default threshold")


if __name__ == "__main__":
    run_script(main)
