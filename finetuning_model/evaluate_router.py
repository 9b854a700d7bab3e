"""Judge a checkpoint: does it beat simple baselines, does it hold inside applications' frames, does routing pay?

Reads   a checkpoint's folder
        --outcomes: what two models really did (prompt, weak_score, strong_score); each file is a kind of its own, and
        several are also judged together: pooled, mean over kinds, worst kind
        --labelled: labelled prompts; with neither, the test part that the checkpoint's training left out
        --log: a decision log of the endpoint, whose scores are compared with those of the validation part
        the labelled MT-Bench questions, and the rows the checkpoint was trained on, for the baselines
Writes  evaluation.md, evaluation.json and plots in <checkpoint>/evaluation/; with outcomes also the verdict, in
        verdict.json and README.md of the checkpoint; with --log drift.json and a plot, and with --log alone only these

Every figure stands beside those of simple baselines, with 95% bootstrap intervals over prompts and paired differences.
--hf_model_name also names the frozen encoder of the baselines on embeddings (default: the checkpoint's base).

Example:
    python3 finetuning_model/evaluate_router.py --outcomes my_outcomes.jsonl --price_superior 10 --price_inferior 0.6
    python3 finetuning_model/evaluate_router.py --log decisions.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetuning_model.frames import JUDGING_FRAMES, Frames
from router_data import (
    QUESTIONS_FILE,
    InputError,
    Prices,
    add_price_flags,
    now,
    prices_from,
    program_parser,
    run_script,
    write_json,
    write_text_atomically,
)
from router_model import (
    VERDICT_FILE,
    Router,
    RouterSettings,
    add_router_flags,
    check_threshold,
    newest_checkpoint,
    read_run,
)

if TYPE_CHECKING:
    from finetuning_model.evaluation.eval_sets import EvalSet


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("what to judge on").add_argument
    add("--outcomes", nargs="+", default=[], metavar="FILE", help="outcomes of two models; files or globs")
    add("--labelled", nargs="+", default=[], metavar="FILE", help="labelled prompts; files or globs")
    add("--log", nargs="+", default=[], metavar="FILE",
        help="decision logs: is the traffic still like the rows that the thresholds were chosen on, or are they to be "
        "chosen anew?")
    add("--questions_file", type=Path, default=QUESTIONS_FILE, metavar="FILE",
        help="labelled MT-Bench questions, where the file exists (default: %(default)s)")
    add("--frames", type=Path, default=JUDGING_FRAMES, metavar="FILE",
        help="what your application wraps around a request, in the form that finetuning_model/frames.py describes "
        "(default: the packaged ones)")
    add("--limit", type=int, metavar="N", help="at most this many prompts of each file, for a rehearsal (default: all)")
    add = parser.add_argument_group("how").add_argument
    add("--train_files", nargs="+", metavar="FILE", help="what the baselines learn from (default: the checkpoint's)")
    add("--output_dir", type=Path, metavar="DIR", help="where the report goes (default: <checkpoint>/evaluation)")
    add("--seed", type=int, default=0,
        help="of the random router, of draws and of typos (default: %(default)s)")
    # fmt: on
    add_router_flags(parser)
    add_price_flags(parser)
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    check_threshold(args.threshold)
    prices = prices_from(args)
    if prices and prices.superior <= prices.inferior:
        raise InputError("--price_superior must be more than --price_inferior: else there is nothing to save")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Read, score by the router and by every baseline, judge, and write the report and the verdict."""
    args = parse_args(argv)
    prices, frames = prices_from(args), Frames.read(args.frames)
    folder = args.model_save_dir or newest_checkpoint()

    output_dir = args.output_dir or folder / "evaluation"
    if args.log:
        print(compare_with_log(args, folder, output_dir), flush=True)
        if not (args.outcomes or args.labelled):
            return

    # 1. The checkpoint, the sets to judge on, and the rows that its training saw
    from finetuning_model.evaluation.eval_sets import probe_set, read_sets, training_rows
    from finetuning_model.evaluation.report import markdown, summary
    from finetuning_model.evaluation.scoring import frozen_encoder_of, pooled_outcomes, say, score_sets

    router, run = Router.load(folder, args.hf_model_name), read_run(folder)
    threshold = router.settings.threshold if args.threshold is None else args.threshold
    sets = read_sets(args.outcomes, args.labelled, args.questions_file, folder)
    sets = [eval_set.at_most(args.limit, args.seed) for eval_set in sets]
    train, remarks = training_rows(args.train_files, folder, run)
    prompts = sum(len(eval_set.prompts) for eval_set in sets)
    say(f"judging {folder} on {prompts:,} prompts of {len(sets)} sets, baselines from {len(train):,} training rows")

    # 2. Every prompt scored, by the router and by every baseline
    probes = probe_set()
    embed = frozen_encoder_of(args.hf_model_name, router, run, remarks) if train else None
    score_sets([*sets, probes], router, train, embed, args.seed)
    pooled = pooled_outcomes(sets, args.seed)

    # 3. The judgement
    output_dir.mkdir(parents=True, exist_ok=True)
    evaluation = {
        **facts(args, folder, router, run, len(train)),
        "threshold": threshold,
        "prices": prices,
        "remarks": remarks,
        **judge(router, sets, pooled, probes, threshold, prices, args.seed),
        "frames": judge_in_frames(router, sets, frames, args.frames, run, threshold, args.seed),
    }
    draw_plots(output_dir, evaluation, [*sets, *pooled], router, run, prices)

    # 4. The report, whose Markdown is made from its JSON alone, and the verdict
    evaluation = with_verdict(evaluation, args.outcomes, folder)
    write_json(output_dir / "evaluation.json", evaluation)
    write_text_atomically(output_dir / "evaluation.md", markdown(evaluation))
    if not args.limit:
        keep_verdict(evaluation["verdict"], folder)
    print(summary(evaluation))
    print(f"the whole report: {output_dir / 'evaluation.md'}")
    print(f"next: {evaluation['verdict']['next']}")


def compare_with_log(args: argparse.Namespace, folder: Path, output_dir: Path) -> str:
    """Write drift.json and its plot; what they say, and the next command.

    Raises:
        InputError: the log holds no score of this checkpoint, or the checkpoint no validation part.
    """
    import numpy as np

    from finetuning_model.evaluation import drift
    from finetuning_model.evaluation.metrics import as_json
    from finetuning_model.evaluation.plots import score_histogram

    logged, validation = drift.read_log(args.log, folder.resolve().name), drift.validation_scores(folder)
    threshold = RouterSettings.load(folder).threshold if args.threshold is None else args.threshold
    found = drift.judge_drift(logged, validation, threshold)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "drift.json", as_json(found))
    both = np.concatenate([validation, logged.scores])
    is_logged = np.arange(len(both)) >= len(validation)
    groups = {"the validation part": ~is_logged, "the log": is_logged}
    score_histogram(output_dir / "drift.png", both, groups, threshold, "Traffic")
    return "\n".join([*found["sentences"], f"next: {drift.next_command(found, args.log, folder)}"])


def judge(
    router: Router, sets: "Sequence[EvalSet]", pooled: "Sequence[EvalSet]", probes: "EvalSet", threshold: float,
    prices: Prices | None, seed: int,
) -> dict:  # fmt: skip
    """The figures of evaluation.json but those in frames: sets, several kinds together, probes, changed wordings."""
    from finetuning_model.evaluation.figures import judge_kinds, judge_probes, judge_robustness, judge_set
    from finetuning_model.evaluation.scoring import say

    reports = []
    for eval_set in [*sets, *pooled]:
        say(f"judging on {eval_set.name}, with 1,000 resamples")
        reports.append(judge_set(eval_set, threshold, prices))
    kinds = [eval_set for eval_set in sets if eval_set.has_gap]
    say("changing the wording of prompts")
    return {
        "sets": reports[: len(sets)],
        "pooled": reports[len(sets)] if pooled else None,
        "kinds": judge_kinds(kinds, pooled[0], threshold) if len(kinds) > 1 else None,
        "probes": judge_probes(probes),
        "robustness": judge_robustness(router.score, sets, threshold, seed),
    }


def judge_in_frames(
    router: Router, sets: "Sequence[EvalSet]", frames: Frames, frames_file: Path, run: dict, threshold: float, seed: int
) -> dict:
    """Requests of all sets inside the frames, and whether the checkpoint was trained on some of these."""
    from finetuning_model.evaluation.figures import judge_sets_in_frames
    from finetuning_model.evaluation.scoring import score_prompts

    trained_on = run.get("recipe", {}).get("frames_file")
    remark = "The checkpoint was trained without frames."
    if trained_on and not Path(trained_on).exists():
        remark = f"Whether they were trained on can't be told: {trained_on} is missing."
    elif trained_on:
        shared = len(set(frames.frames) & set(Frames.read(trained_on).frames))
        remark = f"{shared} of them were trained on: that flatters the router." if shared else "None was trained on."
    score = partial(score_prompts, router, what="scoring requests in frames")
    found = judge_sets_in_frames(score, sets, frames, threshold, seed)
    return {"file": frames_file.name, "remark": remark, **found}


def facts(args: argparse.Namespace, folder: Path, router: Router, run: dict, train_rows: int) -> dict:
    """What was judged, and how."""
    return {
        "model_save_dir": str(folder),
        "base_model": router.settings.base_model,
        "backend": router.backend,
        "temperature": router.settings.temperature,
        "train_rows": train_rows,
        "train_files": [str(path) for path in args.train_files or run.get("train_files") or []],
        "seed": args.seed,
        "limit": args.limit,
        "evaluated_at": now(),
    }


def draw_plots(
    folder: Path, evaluation: dict, sets: "Sequence[EvalSet]", router: Router, run: dict, prices: Prices | None
) -> None:
    """Draw every set, the pooled one last, and put the names of its plots into its report."""
    from finetuning_model.evaluation.baselines import ROUTER
    from finetuning_model.evaluation.metrics import uncalibrated
    from finetuning_model.evaluation.plots import draw_set
    from finetuning_model.evaluation.scoring import say

    say("drawing")
    for report, eval_set in zip([*evaluation["sets"], evaluation["pooled"]], sets, strict=False):
        before = uncalibrated(eval_set.scores[ROUTER], router.settings.temperature, logit_bias_of(run))
        report["plots"] = draw_set(folder, eval_set, evaluation["threshold"], before, prices)


def logit_bias_of(run: dict) -> float:
    """The bias that calibration put into the head of the seed that was kept; 0 where the record has none."""
    logs = [log for log in run.get("training", []) if "validation_loss" in log]
    kept: dict = min(logs, key=lambda log: log["validation_loss"], default={})
    return kept.get("logit_bias", kept.get("shift", 0.0))  # "shift" is the earlier form's word


def with_verdict(evaluation: dict, outcome_files: Sequence[str], folder: Path) -> dict:
    """The evaluation as plain JSON, with what it means for whoever pays the bill."""
    from finetuning_model.evaluation.metrics import as_json
    from finetuning_model.evaluation.verdict import judge_verdict

    evaluation = as_json(evaluation)
    return {**evaluation, "verdict": judge_verdict(evaluation, outcome_files, folder)}


def keep_verdict(verdict: dict, folder: Path) -> None:
    """Put a verdict that rests on outcomes into the checkpoint's folder, for the page and the model card."""
    from finetuning_model.evaluation.model_card import update_model_card

    if verdict["pays"] is not None:
        write_json(folder / VERDICT_FILE, verdict)
        update_model_card(folder)


if __name__ == "__main__":
    run_script(main)
