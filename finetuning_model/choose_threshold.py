"""Choose the threshold that meets a target on your own prompts: a share of superior calls, a quality, or a budget.

Reads   a checkpoint's folder; your prompts: outcomes of both models, labelled rows, or any file of prompts
Writes  with --save: `threshold` and `thresholds` in the checkpoint's router.json, and its README.md

How good an answer is comes from the best that the file knows: measured scores (outcomes), the labeller's word (labelled
rows), else the router's own scores. What is measured on prompts is a point estimate: on new prompts it may be less.
With --confidence it is guaranteed: on prompts like these the quality holds with that confidence. That takes outcomes
that were not trained on, some hundreds of them.

Example:
    python3 finetuning_model/choose_threshold.py --prompts my_prompts.jsonl --at_most_superior 20
    python3 finetuning_model/choose_threshold.py --prompts my_outcomes.jsonl --at_least_quality 95 --confidence 95
"""

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from finetuning_model.lineage import history, trained_prompts
from prompt_files import prompt_in, read_records
from router_data import (
    InputError,
    LabelledPrompt,
    Outcome,
    Prices,
    add_price_flags,
    expand_paths,
    normalise_prompt,
    prices_from,
    program_parser,
    run_script,
)
from router_model import (
    SETTINGS_FILE,
    Prompt,
    Router,
    RouterSettings,
    add_router_flags,
    check_threshold,
    newest_checkpoint,
)

if TYPE_CHECKING:
    from finetuning_model.evaluation.tradeoff import Target


class KnownPrompts(NamedTuple):
    """Prompts, and how good both models' answers to them are.

    Attributes:
        prompts: the prompts.
        inferior, superior: quality of each model's answer, shape (n,); empty where nothing is known.
        origin: where the quality comes from, in words.
        measured: whether the rows are outcomes.
    """

    prompts: list[Prompt]
    inferior: np.ndarray
    superior: np.ndarray
    origin: str
    measured: bool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    parser.add_argument("--prompts", nargs="+", required=True, metavar="FILE",
        help="your prompts: outcomes, labelled rows, or any file of prompts; files or globs, all of one kind")
    add = parser.add_argument_group("targets").add_argument
    add("--at_most_superior", type=float, metavar="PERCENT", help="at most this to the superior model, 0..100")
    add("--at_least_quality", type=float, metavar="PERCENT",
        help="at least this of the quality that the superior model alone would give")
    add("--confidence", type=float, metavar="PERCENT",
        help="guarantee that quality on new prompts with this confidence, for example 95; needs outcomes (default: "
        "none, the quality is a point estimate)")
    add("--at_most_cost", type=float, metavar="USD", help="at most so many US dollars per 1,000 prompts; needs prices")
    parser.add_argument("--save", nargs="?", const="", metavar="NAME",
        help="make the threshold the checkpoint's default, and list it in router.json under this name (default: one "
        "made of the targets)")
    # fmt: on
    add_router_flags(parser)
    add_price_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse flags that make no sense together.

    Raises:
        InputError: names the flag and the remedy.
    """
    check_threshold(args.threshold)
    prices = prices_from(args)
    if args.at_most_cost is not None and prices is None:
        raise InputError("--at_most_cost needs --price_superior and --price_inferior")
    if args.save is not None and {args.at_most_superior, args.at_least_quality, args.at_most_cost} == {None}:
        raise InputError("--save needs a target, for example --at_most_superior 20")
    if args.confidence is not None:
        if args.at_least_quality is None or not 0 < args.at_least_quality < 100:
            raise InputError("--confidence needs --at_least_quality between 0 and 100: it is that quality's guarantee")
        if not 0 < args.confidence < 100:
            raise InputError(f"--confidence {args.confidence:g} is not between 0 and 100")


def main(argv: Sequence[str] | None = None) -> None:
    """Read and score the prompts, choose, say what the choice brings, and keep it if asked to."""
    args = parse_args(argv)
    folder, prices = args.model_save_dir or newest_checkpoint(), prices_from(args)

    # 1. The prompts, and what is known of the answers to them
    from finetuning_model.evaluation.scoring import score_prompts
    from finetuning_model.evaluation.tradeoff import choose, offered_thresholds, tradeoff

    known = read_prompts(args.prompts)
    if args.confidence is not None:
        check_guarantee(args.prompts, known, folder)
        known = without_trained(known, folder)

    # 2. Their scores
    router = Router.load(folder, args.hf_model_name)
    scores = score_prompts(router, known.prompts)
    if not len(known.inferior):
        known = known._replace(inferior=1 - scores, superior=np.ones(len(scores)))
    curve = tradeoff(scores, known.inferior, known.superior)

    # 3. The choice, and what it brings beside the present threshold
    targets = targets_of(args, prices)
    thresholds = {"now": router.settings.threshold if args.threshold is None else args.threshold}
    if args.confidence is not None:
        thresholds["chosen"] = guaranteed(args, scores, known, targets)
    elif targets:
        thresholds["chosen"] = choose(curve, *targets)
    else:
        thresholds |= {name.replace("_", " "): value for name, value in offered_thresholds(curve).items()}
    print(f"{len(scores):,} prompts, scored by {folder}; quality {known.origin}.\n")
    print(describe(thresholds, scores, known, prices))
    command = ["python3", "finetuning_model/choose_threshold.py", *(sys.argv[1:] if argv is None else argv)]
    if not targets:
        print(f"\nnext: {shlex.join([*command, '--at_most_superior', '20', '--save'])}")
        return
    text = " and ".join(target.text for target in targets)
    print(f"\n{text}: --threshold {thresholds['chosen']}\n{caveat(args, known)}")

    # 4. Keep it
    if args.save is None:
        print(f"next: {shlex.join([*command, '--save'])}")
        return
    name = args.save or "_and_".join(target.key for target in targets)
    save_threshold(folder, router.settings, name, thresholds["chosen"])
    print(f"written to {folder / SETTINGS_FILE} as {name}, and as the default threshold")
    print(f"next: python3 inference/run_gradio_model.py --model_save_dir {folder}")


def read_prompts(patterns: Sequence[str]) -> KnownPrompts:
    """The prompts of all files, and what is known of the answers.

    Raises:
        InputError: a file can't be read, holds no prompt, or is of another kind than the others.
    """
    from finetuning_model.evaluation.eval_sets import as_row
    from finetuning_model.evaluation.tradeoff import qualities

    outcomes: list[Outcome] = []
    labelled: list[LabelledPrompt] = []
    plain: list[Prompt] = []
    blank = 0
    for path in expand_paths(patterns):
        for record in read_records([path]):
            if {"weak_score", "strong_score"} <= record.fields.keys():
                outcomes.append(as_row(record, Outcome, path))
            elif record.fields.get("label"):
                labelled.append(as_row(record, LabelledPrompt, path))
            elif prompt := prompt_in(record.fields):
                plain.append(prompt)
            else:
                blank += 1
    if blank:
        warnings.warn(f"passed over: {blank:,} without a prompt", stacklevel=2)
    if sum(map(bool, (outcomes, labelled, plain))) > 1:
        raise InputError(
            f"{len(outcomes):,} outcomes, {len(labelled):,} labelled rows and {len(plain):,} mere prompts are of "
            "different kinds; give one kind at a time"
        )
    if outcomes:
        weak = np.array([row.weak_score for row in outcomes])
        strong = np.array([row.strong_score for row in outcomes])
        return KnownPrompts([row.prompt for row in outcomes], weak, strong, "measured on outcomes", True)
    if labelled:
        return KnownPrompts([row.prompt for row in labelled], *qualities(labelled), False)
    if not plain:
        raise InputError(f"{' '.join(map(str, patterns))} holds no prompts")
    origin = "expected from the router's own scores: nothing is known of the answers"
    return KnownPrompts(plain, np.empty(0), np.empty(0), origin, False)


def check_guarantee(patterns: Sequence[str], known: KnownPrompts, folder: Path) -> None:
    """Refuse a guarantee that would rest on opinions, or on prompts that the router was trained on.

    Raises:
        InputError: says what it takes.
    """
    if not known.measured:
        raise InputError(
            "--confidence needs outcomes of both models (weak_score, strong_score): "
            "python3 create_dataset/label_outcomes.py makes them"
        )
    trained_on = {Path(path).resolve() for _, run in history(folder) for path in run.get("train_files", [])}
    for path in expand_paths(patterns):
        if path.resolve() in trained_on:
            raise InputError(f"{path} was trained on, so it guarantees nothing about new prompts; use other outcomes")


def without_trained(known: KnownPrompts, folder: Path) -> KnownPrompts:
    """The prompts that the router was not trained on, whatever file they stood in there.

    Raises:
        InputError: there are no others.
    """
    trained = trained_prompts(folder)
    unseen = [i for i, prompt in enumerate(known.prompts) if normalise_prompt(str(prompt)) not in trained]
    if len(unseen) == len(known.prompts):
        return known
    if not unseen:
        raise InputError("all of these prompts were trained on, so they guarantee nothing about new ones; use others")
    seen = len(known.prompts) - len(unseen)
    warnings.warn(f"{seen:,} outcomes are left out: the router was trained on their prompts", stacklevel=2)
    prompts = [known.prompts[i] for i in unseen]
    return known._replace(prompts=prompts, inferior=known.inferior[unseen], superior=known.superior[unseen])


def targets_of(args: argparse.Namespace, prices: Prices | None) -> "list[Target]":
    """The targets that the flags name."""
    from finetuning_model.evaluation.tradeoff import at_least_quality, at_most_cost, at_most_superior

    targets = []
    if args.at_most_superior is not None:
        targets.append(at_most_superior(args.at_most_superior))
    if args.at_least_quality is not None:
        targets.append(at_least_quality(args.at_least_quality, args.confidence))
    if args.at_most_cost is not None and prices:
        targets.append(at_most_cost(args.at_most_cost, prices))
    return targets


def guaranteed(args: argparse.Namespace, scores: np.ndarray, known: KnownPrompts, targets: "Sequence[Target]") -> float:
    """The threshold that guarantees the quality and keeps the budgets on these prompts.

    Raises:
        InputError: there are too few outcomes, or a budget is not kept.
    """
    from finetuning_model.evaluation.guarantee import guaranteed_threshold
    from finetuning_model.evaluation.tradeoff import tradeoff_at

    quality, confidence = args.at_least_quality / 100, args.confidence / 100
    threshold = guaranteed_threshold(scores, known.inferior, known.superior, quality, confidence)
    point = tradeoff_at(threshold, scores, known.inferior, known.superior)
    for target in targets:
        if not target.at_least and not target.met(point)[0]:
            brings = target.show(float(target.measure(point)[0]))
            raise InputError(f"{target.text}: the threshold that guarantees the quality goes with {brings}")
    return threshold


def describe(thresholds: dict[str, float], scores: np.ndarray, known: KnownPrompts, prices: Prices | None) -> str:
    """A table of what each threshold brings on these prompts, beside as many superior calls drawn at random."""
    from finetuning_model.evaluation.metrics import bootstrap_weights
    from finetuning_model.evaluation.tradeoff import quality_estimate

    draws = bootstrap_weights(len(scores))
    inferior_alone = known.inferior.sum() / known.superior.sum()
    width = max(map(len, thresholds))
    header = f"{'':<{width}} {'threshold':>9} {'superior':>9} {'quality [95% interval]':>24} {'random':>9}"
    lines = [header + (f" {'USD per 1,000':>14}" if prices else "")]
    for name, threshold in thresholds.items():
        share = float(np.mean(scores >= threshold))
        quality = quality_estimate(scores, threshold, known.inferior, known.superior, draws)
        random = 1 - (1 - share) * (1 - inferior_alone)
        line = f"{name:<{width}} {threshold:>9.6g} {share:>9.1%} {quality.show(percent=True):>24} {random:>9.1%}"
        lines.append(line + (f" {prices.per_thousand(share):>14.4g}" if prices else ""))
    return "\n".join(lines)


def caveat(args: argparse.Namespace, known: KnownPrompts) -> str:
    """What the quality is worth on new prompts."""
    if args.confidence is not None:
        return f"guaranteed with {args.confidence:g}% confidence on new prompts that are like these"
    if not known.measured:
        return "the quality is what is expected, not what was measured: outcomes of your two models would say"
    return "the quality is a point estimate, so on new prompts it may well be less; --confidence 95 guarantees it"


def save_threshold(folder: Path, settings: RouterSettings, name: str, threshold: float) -> None:
    """Make `threshold` the checkpoint's default and list it under `name`, in its router.json and its card."""
    from finetuning_model.evaluation.model_card import update_model_card

    update = {"threshold": threshold, "thresholds": {**settings.thresholds, name: threshold}}
    settings.model_copy(update=update).save(folder)
    update_model_card(folder)


if __name__ == "__main__":
    run_script(main)
