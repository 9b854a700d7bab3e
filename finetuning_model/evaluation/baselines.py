"""What a router has to beat, trained on the same rows: prompt length, TF-IDF, and the frozen encoder's embeddings."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

NEIGHBOURS = 15

Embed = Callable[[Sequence[str]], np.ndarray]  # prompts -> unit vectors (n, hidden size)


def baseline_scores(
    train_prompts: Sequence[str],
    train_soft_labels: np.ndarray,
    test_prompts: Sequence[str],
    embed: Embed | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Superior scores of every baseline on the test prompts.

    Args:
        train_prompts: the router's training rows; without any, only what needs no training is scored.
        train_soft_labels: their superior probabilities, shape (n,).
        test_prompts: what to score.
        embed: the frozen encoder; without it the two baselines on embeddings are left out.
        seed: of the random router.

    Returns:
        Name -> scores of shape (len(test_prompts),). All but `prompt length` (characters) are probabilities.
    """
    n = len(test_prompts)
    scores = {
        "always inferior": np.zeros(n),
        "always superior": np.ones(n),
        "random": np.random.default_rng(seed).random(n),
        "prompt length": np.array([len(prompt) for prompt in test_prompts], dtype=float),
    }
    if len(train_prompts):
        scores["majority"] = np.full(n, float(np.mean(train_soft_labels >= 0.5) >= 0.5))
        scores["TF-IDF + logistic regression"] = _tfidf(train_prompts, train_soft_labels, test_prompts)
    if len(train_prompts) and embed is not None:
        train, test = embed(train_prompts), embed(test_prompts)
        scores["embeddings + logistic regression"] = _logistic(train, train_soft_labels, test)
        scores["embeddings + nearest neighbours"] = _neighbours(train, train_soft_labels, test)
    return scores


def category_mean(train_categories: Sequence, train_soft_labels: np.ndarray, test_categories: Sequence) -> np.ndarray:
    """Mean soft label of the training rows of the same category (of all where it has none), shape (len(test),)."""
    sums: dict[object, list[float]] = {}
    for category, target in zip(train_categories, train_soft_labels, strict=True):
        sums.setdefault(category, []).append(target)
    overall = float(np.mean(train_soft_labels))
    return np.array([np.mean(sums[category]) if category in sums else overall for category in test_categories])


def category_gap_of_other_half(categories: Sequence, gain: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean gain of the same category in the half of the rows that the row itself is not in, shape (n,).

    It knows the test's own categories and gains, which no router does: what the category alone could give.
    """
    half = np.random.default_rng(seed).permutation(len(gain)) % 2
    names = np.asarray(categories)
    scores = np.empty(len(gain))
    for part in (0, 1):
        scores[half == part] = category_mean(names[half != part], gain[half != part], names[half == part])
    return scores


def _tfidf(train_prompts: Sequence[str], targets: np.ndarray, test_prompts: Sequence[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
    return _logistic(vectorizer.fit_transform(train_prompts), targets, vectorizer.transform(test_prompts))


def _logistic(train, targets: np.ndarray, test) -> np.ndarray:
    """Logistic regression on soft targets: each row counts once as superior and once as inferior, by its soft label."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    stack = sparse.vstack if sparse.issparse(train) else np.concatenate
    labels = np.repeat([1, 0], len(targets))
    weights = np.concatenate([targets, 1 - targets])
    return (
        LogisticRegression(C=10.0, max_iter=1000).fit(stack([train, train]), labels, weights).predict_proba(test)[:, 1]
    )


def knn_smooth_targets(soft_labels: np.ndarray, vectors: np.ndarray, weight: float) -> np.ndarray:
    """Soft labels, each drawn by `weight` (0..1) to those of its nearest neighbours: one judgement errs, many less.

    Args:
        soft_labels: superior probabilities, shape (n,).
        vectors: unit embeddings of their prompts, shape (n, hidden size).
        weight: 0 leaves the soft labels as they are.

    Returns:
        Shape (n,), within 0.02..0.98: (1 - weight) label + weight (a + b m), where m is the mean label of the nearest
        other rows, and a and b are what predicts the labels best from it. Where neighbours say nothing b is near 0.
    """
    means = _neighbours(vectors, soft_labels, vectors, leave_out_itself=True)
    slope = np.cov(means, soft_labels)[0, 1] / max(np.var(means, ddof=1), 1e-9)
    predicted = np.clip(soft_labels.mean() + slope * (means - means.mean()), 0.02, 0.98)
    return (1 - weight) * soft_labels + weight * predicted


def _neighbours(train: np.ndarray, targets: np.ndarray, test: np.ndarray, leave_out_itself: bool = False) -> np.ndarray:
    """Mean soft label of the nearest training prompts by cosine, weighted by it; `leave_out_itself`: test is train."""
    nearest = min(NEIGHBOURS, len(train) - leave_out_itself)
    scores = np.empty(len(test))
    for start in range(0, len(test), 1024):
        cosine = test[start : start + 1024] @ train.T
        if leave_out_itself:
            cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1
        top = np.argpartition(-cosine, nearest - 1, axis=1)[:, :nearest]
        weight = np.clip(np.take_along_axis(cosine, top, axis=1), 1e-6, None)
        scores[start : start + 1024] = (weight * targets[top]).sum(1) / weight.sum(1)
    return scores


def frozen_encoder(base: str, max_length: int = 256) -> Embed:
    """Mean-pooled unit embeddings of an encoder that was not fine-tuned, in fp32.

    Args:
        base: a hub id or a local folder.
        max_length: tokens at most; a longer prompt keeps its head and tail.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from router_model import PromptEncoder, run_in_batches

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(base, dtype=torch.float32, trust_remote_code=False).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    max_length = min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    encoder = PromptEncoder(tokenizer.backend_tokenizer, max_length)

    def mean_pooled(ids, mask):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
        return torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=1)

    @lru_cache(maxsize=1)  # the training prompts are asked for more than once
    def embed(prompts: tuple[str, ...]) -> np.ndarray:
        return run_in_batches(mean_pooled, [row.ids for row in encoder.encode(prompts)], tokenizer.pad_token_id or 0)

    return lambda prompts: embed(tuple(prompts))
