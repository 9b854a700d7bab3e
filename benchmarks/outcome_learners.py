"""Ways to learn from few outcomes: each takes prompts whose gain is known, and scores others."""

import argparse
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuning_model.like_prompts import corrected, meaning_and_form, rows_to_learn
from router_data import Outcome, probability_from_gain, write_rows

NEIGHBOURS = 15
LEAN = 100  # outcomes from which on the weighted blend trusts them more than the router


@dataclass(frozen=True)
class KnownPrompts:
    """Outcomes, and what costs a pass through a model to know of them.

    Attributes:
        name: of the set.
        rows: the outcomes.
        vectors: unit embeddings by the frozen encoder, shape (n, hidden size).
        margins: superior minus inferior logit of the router as it is, shape (n,).
        groups: a number that near duplicates share, shape (n,).
        log: more prompts of the set, whose outcomes are not known.
    """

    name: str
    rows: list[Outcome]
    vectors: np.ndarray
    margins: np.ndarray
    groups: np.ndarray
    log: tuple[str, ...] = ()

    @property
    def gain(self) -> np.ndarray:
        """The superior model's score minus the inferior model's, shape (n,)."""
        return np.array([row.strong_score - row.weak_score for row in self.rows])

    @property
    def soft_labels(self) -> np.ndarray:
        """What stage 3 makes of the gains, 0..1, shape (n,)."""
        return np.array([probability_from_gain(gain) for gain in self.gain])

    @property
    def prompts(self) -> list[str]:
        """Their texts."""
        return [row.prompt for row in self.rows]

    def take(self, rows: np.ndarray) -> "KnownPrompts":
        """These rows alone."""
        parts = (self.vectors[rows], self.margins[rows], self.groups[rows])
        return KnownPrompts(self.name, [self.rows[i] for i in rows], *parts)


Learner = Callable[[KnownPrompts, KnownPrompts, argparse.Namespace], np.ndarray]  # drawn, judged, flags -> scores (n,)


def router_as_it_is(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """What the router says without any outcome."""
    return judged.margins


def nearest_neighbours(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """Mean gain of the nearest prompts."""
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(min(NEIGHBOURS, len(drawn.rows)), metric="cosine")
    return model.fit(drawn.vectors, drawn.gain).predict(judged.vectors)


def logistic_regression(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """On embeddings; each prompt counts once as superior and once as inferior, by its soft label."""
    from sklearn.linear_model import LogisticRegression

    soft_labels = drawn.soft_labels
    weights = np.concatenate([soft_labels, 1 - soft_labels])
    model = LogisticRegression(max_iter=1000)
    model.fit(np.concatenate([drawn.vectors, drawn.vectors]), np.repeat([1, 0], len(soft_labels)), weights)
    return model.decision_function(judged.vectors)


def weighted_blend(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """The router and logistic regression on embeddings, each standardised; the more outcomes, the more the latter."""
    learnt = logistic_regression(drawn, judged, args)
    trust = len(drawn.rows) / (len(drawn.rows) + LEAN)
    return (1 - trust) * _standardised(judged.margins) + trust * _standardised(learnt)


def corrected_router(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """The router, corrected by how far the soft labels of like prompts lie above or below it."""
    vectors = np.concatenate([drawn.vectors, judged.vectors])
    of_drawn, of_judged = np.split(meaning_and_form(vectors, [*drawn.prompts, *judged.prompts]), [len(drawn.rows)])
    return corrected(drawn.margins, drawn.soft_labels, of_drawn, judged.margins, of_judged)


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-9)


def going_on_from_router(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """Stage 3, from the router's weights."""
    return _stage_3(drawn, judged, ["--hf_model_name", str(args.model_save_dir)], args)


def going_on_with_log(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """Stage 3, from the router's weights, with prompts of the same set that have no outcome."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.jsonl")
        write_rows(path, [{"prompt": prompt} for prompt in drawn.log])
        flags = ["--hf_model_name", str(args.model_save_dir), "--unlabelled_files", str(path)]
        return _stage_3(drawn, judged, flags, args)


def encoder_with_sample(drawn: KnownPrompts, judged: KnownPrompts, args: argparse.Namespace) -> np.ndarray:
    """Stage 3, from the encoder, with the sample as auxiliary rows."""
    return _stage_3(drawn, judged, ["--hf_model_name", args.encoder, "--auxiliary_files", *args.sample], args)


def _stage_3(drawn: KnownPrompts, judged: KnownPrompts, flags: Sequence[str], args: argparse.Namespace) -> np.ndarray:
    """Train as finetune_bert.py does, as far as calibration, and score."""
    from finetuning_model import finetune_bert
    from finetuning_model.encoders import load_tokenizer
    from finetuning_model.evaluation.baselines import frozen_encoder
    from finetuning_model.training import Recipe
    from router_model import Router

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes.jsonl")
        write_rows(path, drawn.rows)
        argv = ["--train_files", str(path), "--questions_file", str(Path(folder, "none")), "--output_dir", folder]
        stage_3 = finetune_bert.parse_args([*argv, *flags, *shlex.split(args.training_flags)])
        _, data = finetune_bert.read_inputs(stage_3)
        process = finetune_bert.start_process()
        recipe = Recipe.resolve(stage_3, len(data.train.rows))
        tokenizer = load_tokenizer(recipe.start)
        finder = finetune_bert.request_finder(recipe, tokenizer, data, Path(folder), process)
        embed = frozen_encoder(recipe.base, max_length=min(recipe.max_length, finetune_bert.EMBEDDED_TOKENS))
        lesson = data.train
        if recipe.smooth_labels:
            lesson = rows_to_learn(data, recipe.like_prompts, Router.load(args.model_save_dir), embed, stage_3.seed)
        run = finetune_bert.train_one_seed(recipe, tokenizer, lesson, data, stage_3.seed, Path(folder), finder)
        settings = finetune_bert.calibrated_settings(recipe, run, None)
        router = Router.from_model(run.model, tokenizer, settings, finder)
        logits = router.logits(judged.prompts)
        return logits[:, 1] - logits[:, 0]


CHEAP: dict[str, Learner] = {
    "router": router_as_it_is,
    "neighbours": nearest_neighbours,
    "logistic": logistic_regression,
    "weighted_blend": weighted_blend,
    "corrected": corrected_router,
}
TRAINED: dict[str, Learner] = {
    "continued": going_on_from_router,
    "continued_log": going_on_with_log,
    "auxiliary": encoder_with_sample,
}
NAMES = {
    "router": "the router as it is",
    "continued": "going on from the router",
    "continued_log": "going on, with prompts of the log",
    "auxiliary": "the encoder, the sample as auxiliary rows",
    "neighbours": "nearest neighbours on embeddings",
    "logistic": "logistic regression on embeddings",
    "weighted_blend": "router and logistic regression, weighted",
    "corrected": "the router, corrected by like prompts",
}
