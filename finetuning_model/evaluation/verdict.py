"""Whether routing pays, in two sentences that a manager understands, made from paired intervals on outcomes."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from finetuning_model.evaluation.baselines import ALWAYS_INFERIOR, PROMPT_LENGTH, RANDOM
from finetuning_model.evaluation.metrics import Estimate

NEARLY_ALL = 0.995  # a share of prompts from which on there is nothing left to decide
MOSTLY_TRAINED_ON = 0.5  # share of near duplicates of training rows; traffic that repeats itself has some
MAX_OUTCOMES = 100_000  # more than anybody collects to settle one question
ASK_FOR_OUTCOMES = "python3 create_dataset/label_outcomes.py --dataset my_prompts.jsonl --limit 200 --dry_run"


def judge_verdict(evaluation: dict, outcome_files: Sequence[str], model_save_dir: Path) -> dict:
    """The verdict on an evaluation, from the pooled outcomes where there are several sets.

    Args:
        evaluation: evaluation.json so far: `sets`, `pooled` (or None), `threshold`, `evaluated_at`.
        outcome_files: what --outcomes named, for the next command.
        model_save_dir: the checkpoint's folder, for the next command.

    Returns:
        The fields of `router_model.Verdict`, and `next`, a command. Without outcomes, or where most of them were
        trained on, `pays` is None, and what was not measured is missing.
    """
    judged = [report for report in evaluation["sets"] if "at_threshold" in report]
    if not judged:
        sentences = [
            "What routing saves, and for what quality, is not measured: no outcomes of two models were given.",
            "Let both models answer prompts of your own, and judge again with --outcomes before you route.",
        ]
        return {"pays": None, "sentences": sentences, "next": ASK_FOR_OUTCOMES}
    report = evaluation["pooled"] or judged[0]
    if (known := report.get("near_duplicates", 0)) >= MOSTLY_TRAINED_ON * report["rows"]:
        sentences = [
            f"What routing saves on new prompts is not measured: {known:,} of the {report['rows']:,} outcomes are near "
            "duplicates of rows that the router was trained on.",
            "Judge again on outcomes that were not among them.",
        ]
        return {"pays": None, "sentences": sentences, "next": ASK_FOR_OUTCOMES}
    found = report["at_threshold"]
    pays, conclusion, choose_next = conclude(found, report["rows"], judged)
    choose = ["python3", "finetuning_model/choose_threshold.py", "--model_save_dir", str(model_save_dir), "--prompts"]
    choose += [*map(str, outcome_files), "--at_least_quality", "95", "--confidence", "95", "--save"]
    return {
        "pays": pays,
        "sentences": [describe_savings(found, evaluation["threshold"]), conclusion],
        "measured_on": f"{report['name']}: {report['rows']:,} prompts, {report['kind']}",
        "rows": report["rows"],
        "threshold": evaluation["threshold"],
        "superior_share": found["superior_share"]["value"],
        "quality": found["quality"]["value"],
        "quality_low": found["quality"]["low"],
        "quality_high": found["quality"]["high"],
        "evaluated_at": evaluation["evaluated_at"],
        "next": shlex.join(choose) if choose_next else ASK_FOR_OUTCOMES,
    }


def describe_savings(found: dict, threshold: float) -> str:
    """What routing saves at the threshold, and for what quality, beside the simple alternatives."""
    share, quality = found["superior_share"]["value"], found["quality"]
    saved = f"so {1 - share:.0%} of the calls to it are saved"
    if "cost" in found:
        cost, superior = found["cost"], found["cost_of_superior"]
        saved = f"which costs ${cost:.4g} instead of ${superior:.4g} for 1,000 prompts ({1 - cost / superior:.0%} less)"
    alternatives = {name: f"{entry['value']:.1%}" for name, entry in found["quality_of"].items()}
    return (
        f"At the threshold {threshold:g} the router sends {share:.0%} of the prompts to the superior model, {saved}, "
        f"and the answers keep {quality['value']:.1%} of its quality (95% interval {quality['low']:.1%} to "
        f"{quality['high']:.1%}); the inferior model alone keeps {alternatives[ALWAYS_INFERIOR]}, as many prompts sent "
        f"at random {alternatives[RANDOM]}, the longest prompts {alternatives[PROMPT_LENGTH]}."
    )


def conclude(found: dict, rows: int, judged: Sequence[dict]) -> tuple[bool, str, bool]:
    """What the figures mean: whether routing pays, the sentence, and whether a threshold is to be chosen next.

    Args:
        found: `judge_routing` of the prompts that the verdict rests on.
        rows: how many these are.
        judged: the reports of all sets with outcomes.
    """
    lead = {name: Estimate(**difference) for name, difference in found["lead_over"].items()}
    random, share = lead[RANDOM], found["superior_share"]["value"]
    at_random = f"sending {share:.0%} of the prompts at random ({points(random)})"
    if found["quality_of"][ALWAYS_INFERIOR]["high"] >= 1:
        reason = "The superior model is not shown to be better than the inferior one on these prompts"
        return False, f"{reason}: use the inferior model alone, and don't route.", False
    if not 1 - NEARLY_ALL < share < NEARLY_ALL:
        model = "superior" if share > 0.5 else "inferior"
        return False, f"So nearly every prompt goes to the {model} model: choose another threshold.", True
    if random.high < 0:
        remedy = "don't route with it; train on outcomes of your own two models"
        return False, f"This is worse than {at_random}: {remedy}.", False
    if random.low <= 0:
        more = outcomes_to_show(random, rows)
        wanted = f"about {more:,} outcomes would show a lead of this size" if more else "no lead is in sight"
        remedy = "don't route yet; train on outcomes of your own two models and judge again"
        return False, f"This is not shown to be better than {at_random}: {remedy} ({wanted}).", False
    sentence = f"Routing pays: this is better than {at_random}"
    if lead[PROMPT_LENGTH].low <= 0:
        beside = points(lead[PROMPT_LENGTH])
        sentence += f", though not shown to be better than the longest prompts ({beside}), so train on more outcomes"
    worse = [report["name"] for report in judged if report["at_threshold"]["lead_over"][RANDOM]["high"] < 0]
    if worse:
        sentence += f", but on {' and '.join(worse)} it is worse than random, so keep such prompts with one model"
    return True, f"{sentence}; next, choose a threshold whose quality is guaranteed.", True


def points(lead: Estimate) -> str:
    """A difference of relative qualities in percentage points, with its interval."""
    return f"{100 * lead.value:+.1f} points of quality, 95% interval {100 * lead.low:+.1f} to {100 * lead.high:+.1f}"


def outcomes_to_show(lead: Estimate, rows: int) -> int | None:
    """How many outcomes it takes to tell a lead of this size from none; None where there is no lead.

    An interval's width falls with the square root of the number of prompts.
    """
    if lead.value <= 0:
        return None
    needed = rows * ((lead.value - lead.low) / lead.value) ** 2
    return int(float(f"{needed:.1e}")) if needed < MAX_OUTCOMES else None
