"""The figures of an evaluation: one set, all kinds together, the probes, changed wordings; as values for JSON."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from finetuning_model.evaluation import robustness
from finetuning_model.evaluation.baselines import (
    ALWAYS_INFERIOR,
    ALWAYS_SUPERIOR,
    PROMPT_LENGTH,
    RANDOM,
    ROUTER,
)
from finetuning_model.evaluation.eval_sets import EvalSet, is_in_unit_interval, pool_small, probe_ladders, read_probes
from finetuning_model.evaluation.metrics import (
    OF_PROBABILITIES,
    Metric,
    accuracy,
    apgr,
    average,
    bootstrap_weights,
    compare_scorers,
    cpt,
    estimate,
    gain_of_calls,
    label_figures,
    pgr,
    spearman,
    with_differences,
)
from finetuning_model.frames import Frames
from router_data import LABELS, Prices

LENGTHS = (60, 200, 600)  # characters: ends of the length buckets
MAX_MISSES = 20
MAX_PERTURBED_PROMPTS = 200
MAX_BUCKETS = 25  # of one sort in a report; the smaller ones are pooled


# --- one set ---------------------------------------------------------------------------------------------------------


def judge_set(eval_set: EvalSet, threshold: float, prices: Prices | None) -> dict:
    """Everything the report says of one set."""
    draws = bootstrap_weights(len(eval_set.prompts))
    router, labels = eval_set.scores[ROUTER], eval_set.first_labels
    report: dict = {"name": eval_set.name, "kind": eval_set.kind, "rows": len(eval_set.prompts)}
    report["labels"] = [
        {
            "says": says,
            "superior_share": float(np.mean(soft_labels >= 0.5)),
            "metrics": compare_all(label_figures(soft_labels, threshold), eval_set.scores, draws),
            "confusion": confusion(soft_labels, router, threshold),
        }
        for says, soft_labels in eval_set.labels.items()
    ]
    headline = "APGR" if eval_set.has_gap else "AUROC"
    figures = report["labels"][0]["metrics"]
    if eval_set.has_gap:
        figures = report["curve"] = compare_all(curve_figures(eval_set, threshold, prices), eval_set.scores, draws)
    report["headline"] = {"metric": headline, "scorers": figures[headline]}
    if eval_set.has_outcomes and eval_set.strong.sum() > 0:
        report["at_threshold"] = judge_routing(eval_set, threshold, prices)
    if len(eval_set.human_preference):
        rank = {"Spearman's ρ with the human preference": spearman(eval_set.human_preference)}
        report["human_preference"] = compare_all(rank, eval_set.scores, draws)
    if len(eval_set.near_duplicates):
        report["near_duplicates"] = int(eval_set.near_duplicates.sum())
        if 0 < report["near_duplicates"] < report["rows"]:
            report["without_near_duplicates"] = without_near_duplicates(eval_set, headline)
    report["by"] = {
        "category": buckets(eval_set.categories, router, labels, threshold),
        "language": buckets(eval_set.languages, router, labels, threshold),
        "length in characters": buckets(list(map(length_bucket, eval_set.prompts)), router, labels, threshold),
    }
    report["misses"] = misses(eval_set, labels, threshold)
    return report


def compare_all(metrics: dict[str, Metric], scores: dict[str, np.ndarray], draws: np.ndarray) -> dict:
    """Metric -> scorer -> its figure, and the router's minus it; scores outside 0..1 are only ranked."""
    probabilities = {scorer: values for scorer, values in scores.items() if is_in_unit_interval(values)}
    return {
        name: compare_scorers(metric, probabilities if name in OF_PROBABILITIES else scores, draws)
        for name, metric in metrics.items()
    }


def curve_figures(eval_set: EvalSet, threshold: float, prices: Prices | None) -> dict[str, Metric]:
    """The metrics on the cost-quality curve of outcomes, by name."""
    gain, share = eval_set.gain, float(np.mean(eval_set.scores[ROUTER] >= threshold))
    half, most = cpt(gain, 0.5), cpt(gain, 0.8)
    figures = {"APGR": apgr(gain), "CPT(50)": half, "CPT(80)": most, pgr_name(share): pgr(gain, share)}
    if prices:
        figures["cost at CPT(50)"] = lambda scores, weights: prices.per_thousand(half(scores, weights))
        figures["cost at CPT(80)"] = lambda scores, weights: prices.per_thousand(most(scores, weights))
    return figures


def pgr_name(share: float) -> str:
    """What a table calls the PGR where the router's threshold lies."""
    return f"PGR at {share:.0%} superior calls"


def judge_routing(eval_set: EvalSet, threshold: float, prices: Prices | None) -> dict:
    """What routing at a threshold brings on outcomes, beside the simple ways to spend as much.

    Returns:
        `superior_share`; `quality` of the routed answers and `quality_of` each alternative, relative to the superior
        model alone; `lead_over` each of them in the same unit, by paired bootstrap; with prices, US dollars for 1,000
        prompts. "random" and "prompt length" send as many prompts to the superior model as the router does.
    """
    router, weak, strong, gain = eval_set.scores[ROUTER], eval_set.weak, eval_set.strong, eval_set.gain
    sent = router >= threshold
    routed, length = np.where(sent, strong, weak), eval_set.scores[PROMPT_LENGTH]
    quality_sums: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        ROUTER: lambda weights: weights @ routed,
        ALWAYS_SUPERIOR: lambda weights: weights @ strong,
        ALWAYS_INFERIOR: lambda weights: weights @ weak,
        RANDOM: lambda weights: weights @ weak + average(sent, weights) * (weights @ gain),
        PROMPT_LENGTH: lambda weights: weights @ weak + gain_of_calls(gain, length, weights, average(sent, weights)),
    }
    ones, draws = np.ones((1, len(router))), bootstrap_weights(len(router))
    compared = with_differences(
        {
            name: ((quality(ones) / (ones @ strong))[0], quality(draws) / (draws @ strong))
            for name, quality in quality_sums.items()
        }
    )
    share = estimate(average, sent.astype(np.float64), draws)
    found: dict = {
        "superior_share": share,
        "quality": compared.pop(ROUTER)["figure"],
        "quality_of": {name: entry["figure"] for name, entry in compared.items()},
        "lead_over": {name: entry["difference"] for name, entry in compared.items()},
    }
    if prices:
        found["cost"] = prices.per_thousand(share.value)
        found["cost_of_superior"] = prices.per_thousand(1.0)
    return found


def confusion(soft_labels: np.ndarray, router: np.ndarray, threshold: float) -> dict:
    """Label -> route taken -> prompts."""
    wanted, taken = soft_labels >= 0.5, router >= threshold
    return {
        label: {route: int(((wanted == i) & (taken == j)).sum()) for j, route in enumerate(LABELS)}
        for i, label in enumerate(LABELS)
    }


def without_near_duplicates(eval_set: EvalSet, headline: str) -> dict:
    """The router's headline figure on the prompts that have no near duplicate among the training rows."""
    rest = eval_set.take(np.flatnonzero(~eval_set.near_duplicates))
    metric = apgr(rest.gain) if headline == "APGR" else label_figures(rest.first_labels, 0.5)["AUROC"]
    n = len(rest.prompts)
    return {"rows": n, headline: estimate(metric, rest.scores[ROUTER], bootstrap_weights(n))}


def buckets(names: Sequence[str], router: np.ndarray, labels: np.ndarray, threshold: float) -> list[dict]:
    """Accuracy in each bucket, beside that of its best constant decision, largest buckets first."""
    found = []
    pooled = np.asarray(pool_small(names, MAX_BUCKETS))
    for name, count in Counter(pooled.tolist()).most_common():
        member = pooled == name
        share = labels[member].mean()
        found.append(
            {
                "name": name,
                "rows": count,
                "superior_share": share,
                "mean_score": router[member].mean(),
                "accuracy": estimate(accuracy(labels[member], threshold), router[member], bootstrap_weights(count)),
                "constant_accuracy": max(share, 1 - share),
            }
        )
    return found


def length_bucket(prompt: str) -> str:
    """The name of the bucket of a prompt's length."""
    low = 0
    for high in LENGTHS:
        if len(prompt) <= high:
            return f"{low + 1} to {high}"
        low = high
    return f"over {low}"


def misses(eval_set: EvalSet, labels: np.ndarray, threshold: float) -> list[dict]:
    """The wrong decisions whose score lies farthest from the label."""
    router = eval_set.scores[ROUTER]
    wrong = np.flatnonzero((router >= threshold) != (labels >= 0.5))
    worst = wrong[np.argsort(-np.abs(router - labels)[wrong], kind="stable")][:MAX_MISSES]
    return [
        {
            "prompt": eval_set.prompts[i],
            "category": eval_set.categories[i],
            "router_score": router[i],
            "label": LABELS[int(labels[i])],
            **({"weak_score": eval_set.weak[i], "strong_score": eval_set.strong[i]} if eval_set.has_outcomes else {}),
        }
        for i in worst
    ]


# --- several kinds together ------------------------------------------------------------------------------------------


def judge_kinds(sets: Sequence[EvalSet], pooled: EvalSet, threshold: float) -> dict:
    """Several kinds of prompts together: pooled, their mean, and the worst, by every scorer that all sets have.

    Args:
        sets: outcomes, a kind each.
        pooled: `pooled_set` of them.
        threshold: SUPERIOR from this score on; says at which share of superior calls PGR is given.

    Returns:
        `pooled` (metric -> scorer -> figure and difference); `mean` and `worst` of APGR (scorer -> the same, `worst`
        with the kind on which that scorer is worst). Of the mean each kind is resampled by itself.
    """
    draws = bootstrap_weights(len(pooled.prompts))
    share = float(np.mean(pooled.scores[ROUTER] >= threshold))
    metrics = {"APGR": apgr(pooled.gain), pgr_name(share): pgr(pooled.gain, share)}
    scorers = [name for name in sets[0].scores if all(name in eval_set.scores for eval_set in sets)]
    values: dict[str, list[float]] = {name: [] for name in scorers}
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in scorers}
    for seed, eval_set in enumerate(sets):
        metric, n = apgr(eval_set.gain), len(eval_set.prompts)
        own_draws, ones = bootstrap_weights(n, seed=seed), np.ones((1, n))
        for name in scorers:
            values[name].append(metric(eval_set.scores[name], ones)[0])
            resampled[name].append(metric(eval_set.scores[name], own_draws))
    worst = {name: int(np.argmin(values[name])) for name in scorers}
    of_worst = with_differences({name: (values[name][i], resampled[name][i]) for name, i in worst.items()})
    return {
        "sets": [eval_set.name for eval_set in sets],
        "rows": len(pooled.prompts),
        "pooled": compare_all(metrics, pooled.scores, draws),
        "mean": with_differences(
            {name: (float(np.mean(values[name])), np.mean(resampled[name], axis=0)) for name in scorers}
        ),
        "worst": {name: {**entry, "kind": sets[worst[name]].name} for name, entry in of_worst.items()},
    }


# --- probes, wordings, frames ----------------------------------------------------------------------------------------


def judge_probes(probes: EvalSet) -> dict:
    """Ordered pairs and ladders, by the router and every baseline, from the scores of `probe_set`."""
    report: dict = {}
    if len(probes.near_duplicates):
        report["near_duplicates"] = int(probes.near_duplicates.sum())
    start = 0
    for name, rows in probe_ladders().items():
        end = start + sum(len(row["prompts"]) for row in rows)
        if rows:
            scores = {scorer: values[start:end].reshape(len(rows), -1) for scorer, values in probes.scores.items()}
            report[name] = robustness.judge_order([row["kind"] for row in rows], scores)
        start = end
    return report


def judge_robustness(score: robustness.Score, sets: Sequence[EvalSet], threshold: float, seed: int) -> dict:
    """Changed wordings of prompts drawn from all sets, and our own prompts in six languages."""
    prompts = sorted({prompt for eval_set in sets for prompt in eval_set.prompts})
    prompts = random.Random(seed).sample(prompts, min(MAX_PERTURBED_PROMPTS, len(prompts)))
    parallel = read_probes("translations")
    return {
        "prompts": len(prompts),
        "perturbations": robustness.perturbation_effects(score, prompts, threshold, seed),
        "translated_prompts": len(parallel),
        "translations": robustness.translations(score, parallel, threshold) if parallel else {},
    }


def judge_sets_in_frames(
    score: robustness.Score, sets: Sequence[EvalSet], frames: Frames, threshold: float, seed: int
) -> dict:
    """`judge_frames` of requests drawn evenly from all sets; the labels are those that lead each set's report."""
    each = -(-robustness.FRAMED_PROMPTS // len(sets))
    parts = [eval_set.at_most(each, seed) for eval_set in sets]
    prompts = [prompt for part in parts for prompt in part.prompts]
    labels = np.concatenate([part.first_labels for part in parts])
    return robustness.judge_frames(score, prompts, labels, frames, threshold, seed)
