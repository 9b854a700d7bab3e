"""Which prompts of a log are worth an outcome: `--choose N`.

An outcome costs four answers, and prompts that are alike teach alike. So the prompts are grouped by their words
(k-means on TF-IDF), and of each group the one nearest its centre is asked about. Where the rows have a `router_score`,
only the half of them that lies nearest the threshold is grouped: of the others the router is sure.
"""

import argparse
import warnings
from collections.abc import Container, Sequence

import numpy as np

from create_dataset.prompt_sources import Prompt, draw, read_data_sets
from prompt_files import first_user_turn, prompt_in
from router_data import InputError, dedup_key

MAX_CANDIDATES = 20_000  # drawn at random from a larger file
UNCERTAIN_SHARE = 0.5  # of the prompts, those nearest the threshold
DIMENSIONS = 64  # of the space in which prompts are grouped
MAX_WORDS = 20_000


class PromptList(list[Prompt]):
    """Prompts to ask about, the first ones first."""

    def leave_out(self, done: Container[str]) -> None:
        """Forget the prompts whose `dedup_key` is in `done`."""
        self[:] = [prompt for prompt in self if dedup_key(prompt.text) not in done]


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
    """The flags from which `choose` takes how many prompts, and how."""
    # fmt: off
    add = parser.add_argument_group("choice").add_argument
    add("--choose", type=int, metavar="N",
        help="instead of --limit: the N prompts whose outcomes teach most, unlike one another and, where the rows have "
        "a router_score, near the threshold (default: a random draw)")
    add("--choose_at_random", action="store_true", help="with --choose: a random draw of N, to compare with")
    # fmt: on


def check_choice_flags(args: argparse.Namespace) -> None:
    """Refuse values of `add_choice_flags` that can't work.

    Raises:
        InputError: names the flag.
    """
    if args.choose is not None and args.choose < 1:
        raise InputError("--choose must be at least 1")
    if args.choose_at_random and not args.choose:
        raise InputError("--choose_at_random goes with --choose N")


def choose(args: argparse.Namespace) -> PromptList:
    """The prompts that `--choose` picks from the data sets of `--dataset`; says what they were picked from.

    Args:
        args: with the flags of `add_choice_flags` and of `prompt_sources.add_prompt_flags`.

    Raises:
        InputError: as `prompt_sources.draw`.
    """
    limit = args.choose if args.choose_at_random else MAX_CANDIDATES
    drawn = draw(
        argparse.Namespace(**{**vars(args), "limit": limit, "drop_near_duplicates": not args.choose_at_random})
    )
    candidates = list(drawn)
    if args.choose_at_random or len(candidates) <= args.choose:
        return PromptList(candidates[: args.choose])
    distances = distances_from_threshold(args.dataset, args.prompt_column)
    distance = np.array([distances.get(dedup_key(prompt.text), np.nan) for prompt in candidates])
    chosen = choose_among([prompt.text for prompt in candidates], distance, args.choose, args.seed)
    known = int(np.isfinite(distance).sum())
    print(
        f"chose {len(chosen):,} of {len(candidates):,} prompts, unlike one another"
        + (f" and near the threshold ({known:,} have a router_score)" if known else "; none has a router_score")
    )
    return PromptList(candidates[i] for i in chosen)


def distances_from_threshold(names: Sequence[str], prompt_column: str | None) -> dict[str, float]:
    """How far the router's score of each prompt lies from the threshold, by `dedup_key`, where the rows say."""
    found: dict[str, float] = {}
    for record in read_data_sets(names):
        score, threshold = record.fields.get("router_score"), record.fields.get("threshold")
        if not isinstance(score, int | float):
            continue
        text = first_user_turn(prompt_in(record.fields, prompt_column))
        found[dedup_key(text)] = abs(score - (threshold if isinstance(threshold, int | float) else 0.5))
    return found


def choose_among(texts: Sequence[str], distance: np.ndarray, count: int, seed: int) -> list[int]:
    """Positions of the prompts to ask about.

    Args:
        texts: the candidates, more than `count`.
        distance: of their router scores from the threshold, shape (n,); NaN where there is none.
        count: how many.
        seed: of the grouping.

    Returns:
        `count` positions, each once, in an order whose first part is spread out too.
    """
    order = np.argsort(np.where(np.isfinite(distance), distance, 0.0), kind="stable")
    kept = order[: max(count, round(UNCERTAIN_SHARE * len(texts)))] if np.isfinite(distance).any() else order
    kept = np.sort(kept)
    medoids = kept[nearest_to_centres(word_vectors([texts[i] for i in kept], seed), count, seed)]
    draw = np.random.default_rng(seed)
    others = draw.permutation(np.setdiff1d(kept, medoids))[: count - len(medoids)]
    return [int(i) for i in draw.permutation(np.concatenate([medoids, others]))]


def word_vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """Unit vectors of the prompts by their words: TF-IDF, reduced (latent semantic analysis), shape (n, dimensions)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(sublinear_tf=True, max_features=MAX_WORDS, token_pattern=r"\S+").fit_transform(texts)
    dimensions = min(DIMENSIONS, *(size - 1 for size in words.shape))
    if dimensions < 1:
        return words.toarray()
    with np.errstate(invalid="ignore"):  # the share of variance explained is 0 / 0 where all prompts are alike
        return normalize(TruncatedSVD(dimensions, random_state=seed).fit_transform(words))


def nearest_to_centres(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of the row nearest the centre of each of `count` groups; fewer where groups are empty."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct prompts than groups: some stay empty
        groups = MiniBatchKMeans(count, n_init=1, max_iter=20, random_state=seed).fit(vectors)
    distance = np.linalg.norm(vectors - groups.cluster_centers_[groups.labels_], axis=1)
    order = np.lexsort((distance, groups.labels_))
    return order[np.unique(groups.labels_[order], return_index=True)[1]]
