"""How often a guaranteed quality is not kept, beside the point estimate, on outcomes that you name.

Reads   a checkpoint's folder; outcomes (prompt, weak_score, strong_score), which stand for all the traffic there is
Writes  a table to the terminal: for each number of outcomes, over many draws of as many from the files, how often the
        threshold that was chosen on them keeps less than the wanted quality on all outcomes (at most 1 - confidence is
        promised), what share it sends to the superior model, and how many draws were refused as too small

Example:
    python3 benchmarks/threshold_guarantee.py --outcomes my_outcomes.jsonl --quality 95 --confidence 95 --draws 1000
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from router_data import InputError, Outcome, batches_with_progress, expand_paths, program_parser, run_script
from router_model import Router, add_router_flags, newest_checkpoint


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--outcomes", nargs="+", required=True, metavar="FILE", help="outcomes of two models; files or globs, pooled")
    add("--quality", type=float, default=95, metavar="PERCENT", help="of the superior model's (default: %(default)g)")
    add("--confidence", type=float, default=95, metavar="PERCENT", help="that it is kept (default: %(default)g)")
    add("--sizes", type=int, nargs="+", default=[100, 200, 400, 800], metavar="N",
        help="outcomes in a draw (default: 100 200 400 800)")
    add("--draws", type=int, default=1000, metavar="N", help="draws of each size (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    # fmt: on
    add_router_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Score all outcomes once, then choose thresholds on draws and look at all outcomes how they do."""
    args = parse_args(argv)
    from finetuning_model.evaluation.eval_sets import read_checked
    from finetuning_model.evaluation.guarantee import guaranteed_threshold
    from finetuning_model.evaluation.scoring import score_prompts
    from finetuning_model.evaluation.tradeoff import at_least_quality, choose, tradeoff

    rows = [row for path in expand_paths(args.outcomes) for row in read_checked(path, Outcome)]
    router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)
    scores = score_prompts(router, [row.prompt for row in rows])
    traffic = np.stack([scores, [row.weak_score for row in rows], [row.strong_score for row in rows]])
    quality, confidence = args.quality / 100, args.confidence / 100

    def guaranteed(scores, weak, strong):
        return guaranteed_threshold(scores, weak, strong, quality, confidence)

    def estimated(scores, weak, strong):
        return choose(tradeoff(scores, weak, strong), at_least_quality(args.quality))

    print(f"{len(rows):,} outcomes, {args.draws:,} draws of each size; wanted: {quality:.3g} of the superior model's")
    print(f"quality. Guaranteed with a confidence of {confidence:.3g}, so broken in at most {1 - confidence:.3g}.\n")
    print("| outcomes | way | broken | mean share to the superior model | refused |")
    print("|---:|---|---:|---:|---:|")
    for size in args.sizes:
        for name, way in (("point estimate", estimated), ("guarantee", guaranteed)):
            print(f"| {size} | {name} | {row_of(way, traffic, quality, size, args.draws, args.seed)} |", flush=True)


def row_of(way: Callable[..., float], traffic: np.ndarray, quality: float, size: int, draws: int, seed: int) -> str:
    """How a way to choose does over many draws, as the cells of a table.

    Args:
        way: scores, weak and strong qualities of a draw -> threshold; InputError refuses the draw.
        traffic: scores, weak and strong qualities of all outcomes, shape (3, n).
    """
    scores, weak, strong = traffic
    broken, shares, draw = 0, [], np.random.default_rng(seed)
    for batch in batches_with_progress(range(draws), 1, f"draws of {size}"):
        for _ in batch:
            try:
                threshold = way(*traffic[:, draw.integers(0, len(scores), size)])
            except InputError:
                continue
            sent = scores >= threshold
            broken += np.where(sent, strong, weak).sum() < quality * strong.sum()
            shares.append(sent.mean())
    noise = 2 * np.sqrt(broken * (draws - broken) / draws**3)
    share = f"{np.mean(shares):.1%}" if shares else "–"
    return f"{broken / draws:.1%} ± {noise:.1%} | {share} | {1 - len(shares) / draws:.1%}"


if __name__ == "__main__":
    run_script(main)
