"""How many outcomes of your own does a better router take? Learning curves of several ways to learn from them.

Reads   a checkpoint's folder; outcomes (prompt, weak_score, strong_score), each file a set of its own; of several files
        also their mixture
Writes  --results, a row of JSONL for each set, way, number of outcomes and draw, as soon as it is measured; what is
        there already is not measured again, so that parts may run apart, and `cat` merges their files
        with --docs tables with intervals and a plot in docs/

A draw is a random part of a set. Of the rest a third are prompts without outcomes, as a log has them; the others judge,
without near duplicates of what was drawn. APGR is measured on these once as they are and on resamples, so that every
mean over draws has an interval over draws and prompts, and every difference to the router as it is one on the same
draws and resamples. Embeddings and the router's scores are kept.

Example:
    python3 benchmarks/few_outcomes.py --outcomes outcomes/*.jsonl --model_save_dir models/<a router>-save
    python3 benchmarks/few_outcomes.py --outcomes outcomes/*.jsonl --sets mixture --ways continued --sizes 200 800
    python3 benchmarks/few_outcomes.py --outcomes outcomes/*.jsonl --docs
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks import learning_curves
from benchmarks.outcome_learners import CHEAP, TRAINED, KnownPrompts
from router_data import (
    SAMPLE_FILE,
    InputError,
    Outcome,
    Progress,
    RowAppender,
    expand_paths,
    near_duplicate_groups,
    program_parser,
    read_json_lines,
    run_script,
    short_sha256,
)
from router_model import Router, add_router_flags, fingerprint, newest_checkpoint, weight_files

WAYS = {**CHEAP, **TRAINED}
MIXTURE = learning_curves.MIXTURE
MIN_JUDGED = 200  # prompts that must be left to judge on
LOG_SHARE = 1 / 3  # of the rest: without outcomes; the others judge
RESAMPLES = 200
EMBEDDED_TOKENS = 128
KEPT = Path(tempfile.gettempdir()) / "few_outcomes"
ROW_FIELDS = ("set", "way", "outcomes", "draw")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--outcomes", nargs="+", required=True, metavar="FILE", help="outcomes of two models; files or globs")
    add("--sets", nargs="+", metavar="NAME", help=f"names of files without their ending, and {MIXTURE} (default: all)")
    add("--ways", nargs="+", default=list(CHEAP), choices=list(WAYS), metavar="WAY",
        help=f"ways to learn: {' '.join(CHEAP)}, and the slow {' '.join(TRAINED)} (default: all but the slow ones)")
    add("--sizes", type=int, nargs="+", default=[0, 50, 100, 200, 400, 800], metavar="N",
        help=f"outcomes to learn from, where {MIN_JUDGED} are left to judge on (default: 0 50 100 200 400 800)")
    add("--draws", type=int, default=5, metavar="N", help="draws of each size (default: %(default)s)")
    add("--max_prompts", type=int, default=2000, metavar="N",
        help="prompts of a set at most, drawn by seed (default: %(default)s)")
    add("--mixture_prompts", type=int, default=400, metavar="N",
        help="prompts of each set in the mixture at most (default: %(default)s)")
    add("--seed", type=int, default=0, help="of prompts and draws (default: %(default)s)")
    add("--sample", nargs="+", default=[str(ROOT / SAMPLE_FILE)], metavar="FILE",
        help="the auxiliary rows of the way `auxiliary` (default: the sample)")
    add("--training_flags", default="", metavar="FLAGS",
        help="further flags of finetune_bert.py for the slow ways, in one string (default: none)")
    add("--results", type=Path, default=KEPT / "results.jsonl", metavar="FILE",
        help="rows of what was measured (default: %(default)s)")
    add("--keep", type=Path, default=KEPT, metavar="DIR",
        help="where embeddings and the router's scores are kept (default: %(default)s)")
    add("--docs", action="store_true", help="write the tables and the plot in docs/")
    # fmt: on
    add_router_flags(parser)
    args = parser.parse_args(argv)
    if min(args.sizes) < 0 or args.draws < 1:
        raise InputError("--sizes must not be negative, and --draws must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Read and embed each set, measure what is missing, and show the curves."""
    args = parse_args(argv)
    from finetuning_model.lineage import parent_router

    args.model_save_dir = args.model_save_dir or newest_checkpoint()
    parent = parent_router(str(args.model_save_dir))
    if parent is None:
        raise InputError(f"{args.model_save_dir} is no router of stage 3")
    args.encoder = args.hf_model_name or parent.encoder

    # 1. The sets
    sets = list(read_sets(args))
    unknown = set(args.sets or ()) - {known.name for known in sets}
    if unknown:
        raise InputError(f"no set is called {' or '.join(sorted(unknown))}; there are {[known.name for known in sets]}")
    sets = [known for known in sets if not args.sets or known.name in args.sets]

    # 2. What is missing
    done = {tuple(row[name] for name in ROW_FIELDS) for row in read_results(args.results)}
    todo = [(known, run) for known in sets for run in runs(known, args) if (known.name, *run) not in done]
    progress = Progress("learning", len(todo))
    with closing(RowAppender(args.results, ROW_FIELDS)) as results:
        for known, (way, size, draw) in todo:
            row = {"set": known.name, "way": way, "outcomes": size, "draw": draw}
            results.append(row | measure(known, way, size, draw, args))
            progress.add(note=f"{known.name}, {way}, {size} outcomes")
    progress.close()

    # 3. The curves
    found = learning_curves.summarise(read_results(args.results))
    for name in (known.name for known in sets):
        print(f"\n{name}\n\n{learning_curves.curves_table(found[name])}")
    if args.docs:
        learning_curves.write(found, ROOT / "docs", args.model_save_dir.resolve().name)


def read_sets(args: argparse.Namespace) -> Iterator[KnownPrompts]:
    """Each file as a set, and of several files their mixture."""
    from finetuning_model.evaluation.eval_sets import read_checked

    paths = expand_paths(args.outcomes)
    draw = np.random.default_rng(args.seed)
    parts = []
    for path in paths:
        rows = read_checked(path, Outcome)
        rows = [rows[i] for i in sorted(draw.permutation(len(rows))[: args.max_prompts])]
        known = with_scores(path.name.split(".")[0], rows, args)
        parts.append(known.take(np.sort(draw.permutation(len(rows))[: args.mixture_prompts])))
        yield known
    if len(parts) > 1:
        groups = [part.groups + 1_000_000 * number for number, part in enumerate(parts)]
        columns = ([part.vectors for part in parts], [part.margins for part in parts], groups)
        vectors, margins, numbers = map(np.concatenate, columns)
        yield KnownPrompts(MIXTURE, [row for part in parts for row in part.rows], vectors, margins, numbers)


def with_scores(name: str, rows: list[Outcome], args: argparse.Namespace) -> KnownPrompts:
    """The rows with embeddings, the router's margins and near duplicates; computed once."""
    from finetuning_model.evaluation.baselines import frozen_encoder

    router = f"{args.encoder} {EMBEDDED_TOKENS} {fingerprint(weight_files(args.model_save_dir))}"
    prompts = [row.prompt for row in rows]
    path = args.keep / f"{name}-{short_sha256(json.dumps([router, *prompts]))}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}: embedding {len(rows):,} prompts ...", file=sys.stderr, flush=True)
        logits = Router.load(args.model_save_dir).logits(prompts)
        vectors = frozen_encoder(args.encoder, EMBEDDED_TOKENS)(prompts)
        groups = near_duplicate_groups(prompts)
        np.savez(path, vectors=vectors, margins=logits[:, 1] - logits[:, 0], groups=groups)
    with np.load(path) as kept:
        return KnownPrompts(name, rows, kept["vectors"], kept["margins"], kept["groups"])


def runs(known: KnownPrompts, args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Way, number of outcomes and draw of everything to measure on a set; without outcomes only the router."""
    for size in args.sizes:
        rest = len(known.rows) - size
        if rest - int(LOG_SHARE * rest) >= MIN_JUDGED:
            for draw in range(args.draws if size else 1):
                yield from ((way, size, draw) for way in args.ways if size or way == "router")


def measure(known: KnownPrompts, way: str, size: int, draw: int, args: argparse.Namespace) -> dict:
    """APGR of a way to learn on the rest of the set, as it is and on resamples; or why it was refused."""
    from finetuning_model.evaluation.metrics import apgr, bootstrap_weights

    order = np.random.default_rng([args.seed, draw]).permutation(len(known.rows))
    drawn, rest = order[:size], order[size:]
    in_log, rest = np.split(rest, [int(LOG_SHARE * len(rest))])
    rest = np.sort(rest[~np.isin(known.groups[rest], known.groups[order[: size + len(in_log)]])])
    to_learn = replace(known.take(drawn), log=tuple(known.rows[i].prompt for i in in_log))
    judged = known.take(rest)
    started = time.perf_counter()
    try:
        scores = WAYS[way](to_learn, judged, args)
    except InputError as error:
        return {"judged": len(rest), "refused": str(error)}
    seconds = time.perf_counter() - started
    metric = apgr(judged.gain)
    resamples = bootstrap_weights(len(known.rows), RESAMPLES, args.seed)[:, rest]  # one prompt, one weight in all draws
    return {
        "judged": len(rest),
        "apgr": float(metric(scores, np.ones((1, len(rest))))[0]),
        "resampled": metric(scores, resamples).round(5).tolist(),
        "seconds": round(seconds, 2),
    }


def read_results(path: Path) -> list[dict]:
    """The rows that were measured; none where there is no file yet."""
    return [row for _, row in read_json_lines(path)] if path.exists() else []


if __name__ == "__main__":
    run_script(main)
