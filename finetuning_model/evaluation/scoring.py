"""Every prompt of an evaluation scored, by the router and by every baseline, while stderr says how far it is."""

import sys
from collections.abc import Sequence

import numpy as np

from finetuning_model.evaluation import baselines
from finetuning_model.evaluation.baselines import Embed
from finetuning_model.evaluation.eval_sets import EvalSet, mark_near_duplicates, pooled_set
from finetuning_model.lineage import recorded_encoder
from router_data import LabelledPrompt, batches_with_progress
from router_model import Prompt, Router

CHUNK = 256  # prompts scored between two moves of the progress bar


def say(text: str) -> None:
    """What is being done, for whoever waits."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def score_prompts(router: Router, prompts: Sequence[Prompt], what: str = "scoring prompts") -> np.ndarray:
    """`router.score`, while stderr says how far it is; shape (len(prompts),)."""
    return np.concatenate([router.score(chunk) for chunk in batches_with_progress(prompts, CHUNK, what)])


def frozen_encoder_of(hf_model_name: str | None, router: Router, run: dict, remarks: list[str]) -> Embed | None:
    """The frozen encoder that the router was fine-tuned from; None, and a remark, where it can't be had."""
    name = hf_model_name or recorded_encoder(run) or router.settings.base_model
    try:
        if name is None:
            raise ValueError("the checkpoint names no base model")
        return baselines.frozen_encoder(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        remarks.append(f"no baselines on embeddings: {name} can't be had ({reason}); name it with --hf_model_name")
        return None


def score_sets(
    sets: Sequence[EvalSet], router: Router, train: list[LabelledPrompt], embed: Embed | None, seed: int
) -> None:
    """Fill each set's `scores`, the router's first, then those of baselines trained on `train`; and near duplicates."""
    prompts = [prompt for eval_set in sets for prompt in eval_set.prompts]
    scores = {baselines.ROUTER: score_prompts(router, prompts)}
    if train:
        say("training the baselines on the same rows")
    soft_labels = np.array([row.soft_label for row in train])
    scores |= baselines.baseline_scores([row.prompt for row in train], soft_labels, prompts, embed, seed)
    categories = [getattr(row, "category", None) for row in train]
    start = 0
    for eval_set in sets:
        end = start + len(eval_set.prompts)
        eval_set.scores = {name: values[start:end] for name, values in scores.items()}
        start = end
        if set(categories) & set(eval_set.categories):
            own = baselines.category_mean(categories, soft_labels, eval_set.categories)
            eval_set.scores[baselines.CATEGORY_MEAN] = own
        add_oracle(eval_set, seed)
    if train:
        say("looking for near duplicates of training rows")
        mark_near_duplicates(sets, train)


def add_oracle(eval_set: EvalSet, seed: int) -> None:
    """Score outcomes of several categories by what no router can know: the category's gain in their other half."""
    if eval_set.has_outcomes and len(set(eval_set.categories)) > 1:
        oracle = baselines.category_gain_of_other_half(eval_set.categories, eval_set.gain, seed)
        eval_set.scores[baselines.ORACLE_BY_CATEGORY] = oracle


def pooled_outcomes(sets: Sequence[EvalSet], seed: int) -> list[EvalSet]:
    """All outcomes as one set, where there are several sets of them; its categories are the sets."""
    outcomes = [eval_set for eval_set in sets if eval_set.has_outcomes]
    if len(outcomes) < 2:
        return []
    pooled = pooled_set(outcomes, seed)
    add_oracle(pooled, seed)
    return [pooled]
