"""What few outcomes say of prompts like theirs: more to learn from, for a router that training goes on from.

A few hundred outcomes are too few to move an encoder by. A Gaussian process, with the router's own word as its prior,
learns much more from them: prompts that are alike in meaning (the frozen encoder's embeddings) and in form (length,
lines, marks) gain alike. Serving it would need a second model, so the encoder learns what it says: of each outcome's
prompt, and, where there are few, of prompts without an outcome too: those of a log, or else of the sample, whose own
labels are not read (docs/lab_notes.md).
"""

import random
import re
from collections.abc import Sequence

import numpy as np

from finetuning_model.evaluation.baselines import Embed
from finetuning_model.labelled_rows import Split, TrainingData, without_near_duplicates
from router_data import INFERIOR, PROJECT_ROOT, SAMPLE_FILE, LabelledPrompt, label_of, read_rows
from router_model import Router

MAX_CHARACTERS = 250  # of a prompt of the sample: short ones cost little time
TIMES = (2, 4)  # a row stands among them, at least and at most: it is not to be drowned by them
OWN_SHARE = 0.5  # of a row's soft label: its outcome is one throw, the process knows those of its like
MIN_SLOPE = 0.02  # of a soft label, by a standard deviation of the router's margin: so much the router's word counts
PRIOR_ROWS = 50  # as many rows without any slope stand beside the outcomes when the slope is fitted
SHARES = np.array([0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])  # of the soft labels' variance that like prompts may share
LISTED = re.compile(r"^\s*(?:\(?\w{1,2}[.):]|[-*•])\s", re.MULTILINE)  # "A. ", "(2) ", "- " at the start of a line
QUESTION_MARKS = ("?", "？", "؟")
MAX_DEVIATION = 3.0  # standard deviations by which a figure of the form may stand out


def rows_to_learn(data: TrainingData, number: int, router: Router, embed: Embed, seed: int) -> Split:
    """The training part, each soft label halfway to what its like say, and prompts without a label that they label.

    Args:
        data: the user's own rows; nothing like a held-out prompt is drawn.
        number: of prompts to draw at most, from `data.unlabelled`, else from the sample; rows are repeated beside them.
        router: the one that training goes on from.
        embed: the frozen encoder.
        seed: of the draw.
    """
    drawn = like_prompts(number, data, seed) if number else []
    rows, n = [*data.train.rows, *drawn], len(data.train.rows)
    prompts, own = [row.prompt for row in rows], data.train.soft_labels
    features, margins = meaning_and_form(embed(prompts), prompts), np.diff(router.logits(prompts))[:, 0]
    found = corrected(margins[:n], own, features[:n], margins, features)
    found[:n] = OWN_SHARE * own + (1 - OWN_SHARE) * found[:n]
    taught = [
        row.model_copy(update={"superior_probability": p, "label": label_of(p)})
        for row, p in zip(rows, found.tolist(), strict=True)
    ]
    times = int(np.clip(number // n, *TIMES)) if drawn else 1
    return Split(times * taught[:n] + taught[n:])


def like_prompts(number: int, data: TrainingData, seed: int) -> list[LabelledPrompt]:
    """Prompts to label, drawn at random: the user's own, else short ones of the sample; none is like a row."""
    if data.unlabelled:
        rows = [LabelledPrompt(prompt=prompt, label=INFERIOR) for prompt in data.unlabelled]
    else:
        sample = read_rows(PROJECT_ROOT / SAMPLE_FILE, LabelledPrompt)
        rows = [row for row in sample if len(row.prompt) <= MAX_CHARACTERS]
    drawn = random.Random(seed).sample(rows, min(number, len(rows)))
    return without_near_duplicates(drawn, [*data.train.prompts, *data.validation.prompts, *data.test.prompts])


def meaning_and_form(vectors: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Unit embeddings, and beside them the form of each prompt, standardised over all of them; shape (n, features).

    Of two prompts the squared distance of the embeddings and the mean squared difference of the form are added up.
    """
    form = np.array([form_of(prompt) for prompt in prompts])
    form = np.clip((form - form.mean(axis=0)) / (form.std(axis=0) + 1e-6), -MAX_DEVIATION, MAX_DEVIATION)
    return np.hstack([vectors.astype(float), form / np.sqrt(form.shape[1])])


def form_of(prompt: str) -> list[float]:
    """What a text looks like, whatever it says: its size, its kinds of characters, whether it lists and asks."""
    characters = max(len(prompt), 1)
    return [
        np.log1p(len(prompt)),
        np.log1p(prompt.count("\n")),
        np.log1p(len(LISTED.findall(prompt))),
        len(prompt.split()) / characters,
        sum(c.isdigit() for c in prompt) / characters,
        sum(c.isupper() for c in prompt) / characters,
        sum(c.isalpha() and not c.isascii() for c in prompt) / characters,
        sum(not c.isalnum() and not c.isspace() for c in prompt) / characters,
        sum(c in "{}()[]=;" for c in prompt) / characters,
        prompt.rstrip().endswith(QUESTION_MARKS),
    ]


def corrected(
    margins: np.ndarray, soft_labels: np.ndarray, features: np.ndarray, of_margins: np.ndarray, of_features: np.ndarray
) -> np.ndarray:
    """What the router says, corrected by how far the soft labels of like prompts lie above or below it.

    A soft label is slope * margin + a correction that like prompts share + noise, a Gaussian process (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, equations 2.25 and 2.30). How much of the variance is
    shared, down to none, is weighed by how likely it makes the rows: few or noisy ones leave the router's order.

    Args:
        margins: superior minus inferior logit of the router on the rows, shape (n,).
        soft_labels: of the rows, 0..1, shape (n,).
        features: of the rows; the nearer two are, the more of the correction they share; shape (n, d).
        of_margins, of_features: those of the prompts to label, shapes (m,) and (m, d).

    Returns:
        Superior probabilities, 0..1, shape (m,).
    """
    from sklearn.metrics.pairwise import rbf_kernel

    centre, scale, base = margins.mean(), margins.std() + 1e-9, soft_labels.mean()
    known, labels = (margins - centre) / scale, soft_labels - base
    slope = max(MIN_SLOPE, float(known @ labels) / (len(labels) + PRIOR_ROWS))
    rest, spread = labels - slope * known, labels.std() + 1e-9
    likeness, across = rbf_kernel(features, gamma=1), rbf_kernel(of_features, features, gamma=1)
    corrections, fits = [], []
    for share in SHARES:
        root = np.linalg.cholesky(share * likeness + (1 - share) * np.eye(len(rest)))
        solved = np.linalg.solve(root, rest / spread)
        fits.append(-np.log(np.diag(root)).sum() - solved @ solved / 2)  # log likelihood, but for a constant
        corrections.append(share * (across @ np.linalg.solve(root.T, solved)))
    weights = np.exp(np.array(fits) - max(fits))
    correction = spread * (weights / weights.sum()) @ np.array(corrections)
    return np.clip(base + slope * (of_margins - centre) / scale + correction, 0, 1)
