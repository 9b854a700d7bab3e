"""What few outcomes say of prompts like theirs: more to learn from, for a router that training goes on from.

A few hundred outcomes are too few to move an encoder by. A Gaussian process on the frozen encoder's embeddings, with
the router's own word as its prior, learns much more from them, but would need a second model to serve. So it labels
prompts of the sample, whose own labels are not read, and the encoder learns from those too (docs/lab_notes.md).
"""

import random

import numpy as np

from finetuning_model.evaluation.baselines import Embed
from finetuning_model.labelled_rows import Split, TrainingData, without_near_duplicates
from router_data import PROJECT_ROOT, SAMPLE_FILE, LabelledPrompt, label_of, read_rows
from router_model import Router

MAX_CHARACTERS = 250  # of a prompt of the sample: short ones cost little time
TIMES = (2, 4)  # a row stands among them, at least and at most: it is not to be drowned by them
OWN_SHARE = 0.5  # of a row's soft label: its outcome is one throw, the process knows those of its like
MIN_SLOPE = 0.02  # of a soft label, by a standard deviation of the router's margin: so much the router's word counts
PRIOR_ROWS = 50  # as many rows without any slope stand beside the outcomes when the slope is fitted
SHARES = np.array([0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])  # of the soft labels' variance that like prompts may share


def rows_to_learn(data: TrainingData, number: int, router: Router | None, embed: Embed, seed: int) -> Split:
    """The training part, and prompts of the sample with what its rows say of them.

    Args:
        data: the user's own rows; nothing like a held-out prompt is drawn.
        number: of prompts to draw from the sample at most; 0 gives the training part as it is.
        router: the one that training goes on from.
        embed: the frozen encoder.
        seed: of the draw from the sample.
    """
    if not number or router is None:
        return data.train
    sample = read_rows(PROJECT_ROOT / SAMPLE_FILE, LabelledPrompt)
    short = [row for row in sample if len(row.prompt) <= MAX_CHARACTERS]
    drawn = random.Random(seed).sample(short, min(number, len(short)))
    drawn = without_near_duplicates(drawn, [*data.validation.prompts, *data.test.prompts])
    rows, n = [*data.train.rows, *drawn], len(data.train.rows)
    prompts, own = [row.prompt for row in rows], data.train.soft_labels
    vectors, margins = embed(prompts), np.diff(router.logits(prompts))[:, 0]
    found = corrected(margins[:n], own, vectors[:n], margins, vectors)
    found[:n] = OWN_SHARE * own + (1 - OWN_SHARE) * found[:n]
    taught = [
        row.model_copy(update={"superior_probability": p, "label": label_of(p)})
        for row, p in zip(rows, found.tolist(), strict=True)
    ]
    return Split(int(np.clip(number // n, *TIMES)) * taught[:n] + taught[n:])


def corrected(
    margins: np.ndarray, soft_labels: np.ndarray, vectors: np.ndarray, of_margins: np.ndarray, of_vectors: np.ndarray
) -> np.ndarray:
    """What the router says, corrected by how far the soft labels of like prompts lie above or below it.

    A soft label is slope * margin + a correction that like prompts share + noise, a Gaussian process (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, equations 2.25 and 2.30). How much of the variance is
    shared, down to none, is weighed by how likely it makes the rows: few or noisy ones leave the router's order.

    Args:
        margins: superior minus inferior logit of the router on the rows, shape (n,).
        soft_labels: of the rows, 0..1, shape (n,).
        vectors: unit embeddings of the rows, shape (n, d).
        of_margins, of_vectors: those of the prompts to label, shapes (m,) and (m, d).

    Returns:
        Superior probabilities, 0..1, shape (m,).
    """
    centre, scale, base = margins.mean(), margins.std() + 1e-9, soft_labels.mean()
    known, labels = (margins - centre) / scale, soft_labels - base
    slope = max(MIN_SLOPE, float(known @ labels) / (len(labels) + PRIOR_ROWS))
    rest, spread = labels - slope * known, labels.std() + 1e-9
    likeness, across = _likeness(vectors, vectors), _likeness(of_vectors, vectors)
    corrections, fits = [], []
    for share in SHARES:
        root = np.linalg.cholesky(share * likeness + (1 - share) * np.eye(len(rest)))
        solved = np.linalg.solve(root, rest / spread)
        fits.append(-np.log(np.diag(root)).sum() - solved @ solved / 2)  # log likelihood, but for a constant
        corrections.append(share * (across @ np.linalg.solve(root.T, solved)))
    weights = np.exp(np.array(fits) - max(fits))
    correction = spread * (weights / weights.sum()) @ np.array(corrections)
    return np.clip(base + slope * (of_margins - centre) / scale + correction, 0, 1)


def _likeness(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 for the same direction, falling with the distance of unit vectors; shape (left, right)."""
    return np.exp(left.astype(float) @ right.T.astype(float) - 1)
