"""The figures of an evaluation: one set, the probes, changed wordings; as plain values for evaluation.json."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass

import numpy as np

from finetuning_model.choose_threshold import cost, quality_estimate
from finetuning_model.evaluation import robustness
from finetuning_model.evaluation.eval_sets import EvaluationSet, read_probes
from finetuning_model.evaluation.metrics import (
    Metric,
    accuracy,
    apgr,
    average,
    bootstrap_weights,
    compare,
    cpt,
    estimate,
    label_figures,
    pgr,
    spearman,
)
from finetuning_model.evaluation.run_report import ROUTER
from router_data import LABELS

LENGTHS = (60, 200, 600)  # characters: ends of the length buckets
MISSES = 20
PERTURBED = 200  # prompts whose wording is changed


def judge_set(each: EvaluationSet, threshold: float, prices: tuple[float, float] | None) -> dict:
    """Everything the report says of one set."""
    n = len(each.prompts)
    draws = bootstrap_weights(n)
    router = each.scores[ROUTER]
    report = {"name": each.name, "kind": each.kind, "rows": n}
    report["targets"] = [
        {
            "target": target,
            "superior_share": float(np.mean(values >= 0.5)),
            "metrics": compare_all(label_figures(values, threshold), each.scores, draws),
            "confusion": confusion(values, router, threshold),
        }
        for target, values in each.targets.items()
    ]
    headline = "AUROC"
    if each.weak is not None and each.gain.sum() > 0:
        headline = "APGR"
        report["curve"] = compare_all(curve_figures(each, threshold, prices), each.scores, draws)
        report["at_threshold"] = at_threshold(each, threshold, prices)
    if each.human_preference is not None:
        rank = {"Spearman's ρ with the human preference": spearman(each.human_preference)}
        report["human_preference"] = compare_all(rank, each.scores, draws)
    everything = report.get("curve") or report["targets"][0]["metrics"]
    report["headline"] = {"metric": headline, "scorers": everything[headline]}
    if each.near_duplicates is not None:
        report["near_duplicates"] = int(each.near_duplicates.sum())
        if 0 < report["near_duplicates"] < n:
            report["without_near_duplicates"] = without_near_duplicates(each, headline)
    y = (next(iter(each.targets.values())) >= 0.5).astype(float)
    report["by"] = {
        "category": buckets(each.categories, router, y, threshold),
        "language": buckets(each.languages, router, y, threshold),
        "length in characters": buckets(list(map(length_bucket, each.prompts)), router, y, threshold),
    }
    report["misses"] = misses(each, y, threshold)
    return report


def compare_all(metrics: dict[str, Metric], scores: dict[str, np.ndarray], draws: np.ndarray) -> dict:
    """Metric -> scorer -> its figure, and the router's figure minus it."""
    compared = {}
    for name, metric in metrics.items():
        of_probabilities = name in ("accuracy", "Brier score", "expected calibration error")
        usable = {
            scorer: values
            for scorer, values in scores.items()
            if not of_probabilities or (values.min() >= 0 and values.max() <= 1)
        }
        compared[name] = compare(metric, usable, draws)
    return compared


def curve_figures(each: EvaluationSet, threshold: float, prices: tuple[float, float] | None) -> dict[str, Metric]:
    gain, calls = each.gain, float(np.mean(each.scores[ROUTER] >= threshold))
    figures = {"APGR": apgr(gain), "CPT(50)": cpt(gain, 0.5), "CPT(80)": cpt(gain, 0.8)}
    figures[f"PGR at {calls:.0%} superior calls"] = pgr(gain, calls)
    if prices:
        figures["cost at CPT(50)"] = lambda scores, weights: cost(cpt(gain, 0.5)(scores, weights), *prices)
        figures["cost at CPT(80)"] = lambda scores, weights: cost(cpt(gain, 0.8)(scores, weights), *prices)
    return figures


def at_threshold(each: EvaluationSet, threshold: float, prices: tuple[float, float] | None) -> dict:
    """What the checkpoint's own threshold brings."""
    router, n = each.scores[ROUTER], len(each.prompts)
    superior = (router >= threshold).astype(float)
    calls = estimate(average, superior, bootstrap_weights(n))
    found = {
        "superior_calls": calls,
        "quality": quality_estimate(router, threshold, each.weak, each.strong),
        "quality_of_random": 1 - (1 - calls.value) * each.gain.sum() / each.strong.sum(),
        "quality_of_inferior": each.weak.sum() / each.strong.sum(),
    }
    if prices:
        found["cost"] = cost(calls.value, *prices)
        found["cost_of_superior"] = prices[0]
    return found


def confusion(targets: np.ndarray, router: np.ndarray, threshold: float) -> dict:
    """Wanted label -> route taken -> prompts."""
    wanted, went = targets >= 0.5, router >= threshold
    return {
        label: {route: int(((wanted == i) & (went == j)).sum()) for j, route in enumerate(LABELS)}
        for i, label in enumerate(LABELS)
    }


def without_near_duplicates(each: EvaluationSet, headline: str) -> dict:
    """The router's headline figure on the prompts that have no near duplicate in the training rows."""
    keep = ~each.near_duplicates
    target = next(iter(each.targets.values()))[keep]
    metric = apgr(each.gain[keep]) if headline == "APGR" else label_figures(target, 0.5)["AUROC"]
    return {
        "rows": int(keep.sum()),
        headline: estimate(metric, each.scores[ROUTER][keep], bootstrap_weights(keep.sum())),
    }


def buckets(names: Sequence[str], router: np.ndarray, y: np.ndarray, threshold: float) -> list[dict]:
    """Accuracy in each bucket, beside that of its best constant decision; largest buckets first."""
    names = np.asarray(names)
    found = []
    for name, count in Counter(names.tolist()).most_common():
        member = names == name
        share = y[member].mean()
        found.append(
            {
                "name": name,
                "rows": count,
                "superior_share": share,
                "mean_score": router[member].mean(),
                "accuracy": estimate(accuracy(y[member], threshold), router[member], bootstrap_weights(count)),
                "constant_accuracy": max(share, 1 - share),
            }
        )
    return found


def length_bucket(prompt: str) -> str:
    low = 0
    for high in LENGTHS:
        if len(prompt) <= high:
            return f"{low + 1} to {high}"
        low = high
    return f"over {low}"


def misses(each: EvaluationSet, y: np.ndarray, threshold: float) -> list[dict]:
    """The wrong decisions whose score lies farthest from the truth."""
    router = each.scores[ROUTER]
    wrong = np.flatnonzero((router >= threshold) != (y >= 0.5))
    worst = wrong[np.argsort(-np.abs(router - y)[wrong], kind="stable")][:MISSES]
    return [
        {
            "prompt": each.prompts[i],
            "category": each.categories[i],
            "superior_probability": router[i],
            "truth": LABELS[int(y[i])],
            **({"weak_score": each.weak[i], "strong_score": each.strong[i]} if each.weak is not None else {}),
        }
        for i in worst
    ]


def judge_probes(probes: EvaluationSet) -> dict:
    """Ordered pairs and ladders, by the router and every baseline, from the scores of `probe_set`."""
    pairs, steps = read_probes("ordered_pairs.jsonl"), read_probes("ladders.jsonl")
    n, scores, report = len(pairs), probes.scores, {}
    if probes.near_duplicates is not None:
        report["near_duplicates"] = int(probes.near_duplicates.sum())
    if pairs:
        easier = {name: values[:n] for name, values in scores.items()}
        harder = {name: values[n : 2 * n] for name, values in scores.items()}
        report["ordered_pairs"] = robustness.ordered_pairs(pairs, easier, harder)
    if steps:
        of_ladders = {name: values[2 * n :].reshape(len(steps), -1) for name, values in scores.items()}
        report["ladders"] = robustness.ladders(steps, of_ladders)
    return report


def judge_robustness(score, sets: list[EvaluationSet], threshold: float, seed: int) -> dict:
    """Changed wordings of prompts drawn from all sets, and our own prompts in six languages."""
    prompts = sorted({prompt for each in sets for prompt in each.prompts})
    prompts = random.Random(seed).sample(prompts, min(PERTURBED, len(prompts)))
    parallel = read_probes("translations.jsonl")
    return {
        "prompts": len(prompts),
        "perturbations": robustness.stability(score, prompts, threshold, seed),
        "translated_prompts": len(parallel),
        "translations": robustness.translations(score, parallel, threshold) if parallel else {},
    }


def as_json(value):
    """Plain JSON of estimates, arrays and numbers; what has no value (one label only, say) becomes null."""
    if is_dataclass(value):
        return as_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
