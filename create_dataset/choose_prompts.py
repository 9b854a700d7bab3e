"""Which prompts of a log are worth an outcome: `--choose N`.

Prompts are drawn evenly over the scores of the router: sorted by `router_score` and cut into N groups of one size, of
each of which one is drawn. That teaches as much as a random draw, no more; so did unlike prompts, and those nearest the
threshold taught some learners more and others less (docs/lab_notes.md). Where no row has a score, the draw is random.

Prompts whose row has both models' answers already are left out: `label_outcomes.py --answers` grades them without
asking again, and they judge what the others teach.
"""

import argparse
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from create_dataset.prompt_sources import Prompt, draw, read_data_sets
from prompt_files import first_user_turn, prompt_in
from router_data import dedup_key, has_both_answers

if TYPE_CHECKING:
    import numpy as np

MAX_CANDIDATES = 20_000  # drawn at random from a larger file


class PromptList(list[Prompt]):
    """Prompts to ask about, the first ones first."""

    def leave_out(self, done: Container[str]) -> None:
        """Forget the prompts whose `dedup_key` is in `done`."""
        self[:] = [prompt for prompt in self if dedup_key(prompt.text) not in done]


def choose(args: argparse.Namespace) -> PromptList:
    """The prompts that `--choose` picks from the data sets of `--dataset`; says what they were picked from.

    Args:
        args: with --choose and the flags of `prompt_sources.add_prompt_flags`.

    Raises:
        InputError: as `prompt_sources.draw`.
    """
    import numpy as np

    candidates = list(draw(argparse.Namespace(**{**vars(args), "limit": MAX_CANDIDATES, "drop_near_duplicates": True})))
    known, answered = router_scores(args.dataset, args.prompt_column)
    unanswered = [prompt for prompt in candidates if dedup_key(prompt.text) not in answered]
    left_out = f" ({len(candidates) - len(unanswered):,} with both answers left out)" if answered else ""
    candidates = unanswered
    scores = np.array([known.get(dedup_key(prompt.text), np.nan) for prompt in candidates])
    chosen = spread_evenly(scores, args.choose, args.seed)
    scored = f"router_score to spread them over: in {np.isfinite(scores).sum():,}"
    print(f"chose {len(chosen):,} of {len(candidates):,} prompts{left_out}; {scored}")
    return PromptList(candidates[i] for i in chosen)


def router_scores(names: Sequence[str], prompt_column: str | None) -> tuple[dict[str, float], set[str]]:
    """The router's score of each prompt, by `dedup_key`, where rows have one; and which of them have both answers."""
    found: dict[str, float] = {}
    answered: set[str] = set()
    for record in read_data_sets(names):
        score = record.fields.get("router_score")
        has_answers = has_both_answers(record.fields)
        if not isinstance(score, int | float) and not has_answers:
            continue
        key = dedup_key(first_user_turn(prompt_in(record.fields, prompt_column)))
        if isinstance(score, int | float):
            found[key] = float(score)
        if has_answers:
            answered.add(key)
    return found, answered


def spread_evenly(scores: "np.ndarray", count: int, seed: int) -> list[int]:
    """Positions of `count` prompts (all, where there are fewer), one drawn from each of `count` groups of like score.

    Args:
        scores: of the router, shape (n,); NaN where there is none: such prompts stand anywhere in the order.
        count: how many.
        seed: of the draw.

    Returns:
        The positions, each once, in random order.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    unscored = np.isnan(scores)
    filled = np.where(unscored, random.random(len(scores)), scores)
    order = np.lexsort((random.random(len(scores)), filled))
    groups = np.array_split(order, min(count, len(order))) if len(order) else []
    return [int(i) for i in random.permutation([random.choice(group) for group in groups])]
