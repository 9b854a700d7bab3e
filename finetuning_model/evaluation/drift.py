"""Whether the traffic of a decision log is still like the rows that a checkpoint's thresholds were chosen on."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prompt_files import read_records
from router_data import InputError, read_json_lines
from router_model import VALIDATION_FILE

MIN_ROWS = 100  # a share is then known to 10 percentage points either way
MIN_DISTANCE = 0.1  # of the two distributions (Kolmogorov and Smirnov); less moves no decision worth speaking of
MAX_P_VALUE = 0.01


class LoggedScores(NamedTuple):
    """What a decision log says of one checkpoint.

    Attributes:
        scores: of the requests that it scored, shape (n,).
        left_out: other rows, by why they say nothing here.
        has_prompts: whether the prompts stand there too, so that a threshold can be chosen on them.
    """

    scores: np.ndarray
    left_out: dict[str, int]
    has_prompts: bool = True


def read_log(files: Sequence[str], checkpoint: str) -> LoggedScores:
    """The scores that a checkpoint gave, each conversation's once.

    Raises:
        InputError: no such file, or not one row that the checkpoint scored.
    """
    scores: list[float] = []
    left_out: Counter[str] = Counter()
    has_prompts = False
    for record in read_records(files):
        score, router = record.fields.get("router_score"), record.fields.get("router")
        if not isinstance(score, int | float):
            left_out["not scored"] += 1
        elif router not in (None, checkpoint):
            left_out[f"scored by {router}"] += 1
        elif record.fields.get("remembered"):
            left_out["scored at an earlier turn"] += 1
        else:
            scores.append(float(score))
            has_prompts = has_prompts or bool(record.fields.get("prompt"))
    if not scores:
        found = f" ({_listed(left_out)})" if left_out else ""
        raise InputError(f"{' '.join(map(str, files))} holds no score of {checkpoint}{found}; name its checkpoint")
    return LoggedScores(np.array(scores), dict(left_out), has_prompts)


def validation_scores(model_save_dir: Path) -> np.ndarray:
    """The checkpoint's scores of the rows that its thresholds were chosen on, shape (n,).

    Raises:
        InputError: it has none.
    """
    path = model_save_dir / VALIDATION_FILE
    if not path.exists():
        raise InputError(f"{path} is missing, so there is nothing to compare the log with; fine-tune again")
    rows = (row for _, row in read_json_lines(path))
    return np.array([row.get("router_score", row.get("superior_probability")) for row in rows], dtype=float)


def judge_drift(logged: LoggedScores, validation: np.ndarray, threshold: float) -> dict:
    """How far the log's scores lie from the validation part's, and whether thresholds are to be chosen anew.

    Args:
        validation: scores of the validation part, shape (n,).
        threshold: in use; what it sends is compared.

    Returns:
        `drifted` is None where the log is too short to tell.
    """
    from scipy.stats import ks_2samp

    from finetuning_model.evaluation.metrics import average, bootstrap_weights, estimate

    test = ks_2samp(logged.scores, validation)
    distance, p_value, rows = float(test.statistic), float(test.pvalue), len(logged.scores)

    def sent(scores: np.ndarray):
        return estimate(lambda s, weights: average(s >= threshold, weights), scores, bootstrap_weights(len(scores)))

    found = {
        "rows": rows,
        "left_out": logged.left_out,
        "has_prompts": logged.has_prompts,
        "validation_rows": len(validation),
        "threshold": threshold,
        "superior_share": sent(logged.scores),
        "validation_superior_share": sent(validation),
        "distance": distance,
        "p_value": p_value,
        "drifted": None if rows < MIN_ROWS else p_value <= MAX_P_VALUE and distance >= MIN_DISTANCE,
    }
    return found | {"sentences": describe(found)}


def describe(found: dict) -> list[str]:
    """What was found, in sentences."""
    left_out = f" (left out: {_listed(found['left_out'])})" if found["left_out"] else ""
    share, before = (found[name].show(percent=True) for name in ("superior_share", "validation_superior_share"))
    sentences = [
        f"At the threshold {found['threshold']:g} the router sends {share} of {found['rows']:,} requests of the log to "
        f"the superior model{left_out}, and {before} of the {found['validation_rows']:,} validation rows.",
    ]
    distance = f"the two distributions of scores are {found['distance']:.2f} apart (p = {found['p_value']:.2g})"
    if found["drifted"] is None:
        sentences.append(f"{MIN_ROWS} requests are the least that show a change: wait for more traffic.")
    elif found["drifted"]:
        sentences.append(f"The traffic is another one, {distance}: choose the threshold anew, on prompts of the log.")
    else:
        sentences.append(f"No drift is shown, {distance}: the thresholds stand.")
    return sentences


def next_command(found: dict, files: Sequence[str], model_save_dir: Path) -> str:
    """What to do after `judge_drift`: choose a threshold that sends as much of the log as was meant to be sent."""
    if not found["drifted"]:
        return shlex.join(["python3", "finetuning_model/evaluate_router.py", "--outcomes", "my_outcomes.jsonl"])
    if not found["has_prompts"]:
        return "python3 inference/serve_openai_api.py --decision_log decisions.jsonl --log_prompts"
    share = f"{max(1, 100 * found['validation_superior_share'].value):.0f}"
    command = ["python3", "finetuning_model/choose_threshold.py", "--model_save_dir", str(model_save_dir), "--prompts"]
    return shlex.join([*command, *map(str, files), "--at_most_superior", share, "--save"])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())
