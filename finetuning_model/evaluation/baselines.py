"""What a router has to beat, trained on the same rows: prompt length, TF-IDF, and the frozen encoder's embeddings."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

NEIGHBOURS = 15

Embed = Callable[[Sequence[str]], np.ndarray]  # prompts -> unit vectors (n, hidden size)


def baseline_scores(
    train_prompts: Sequence[str],
    train_targets: np.ndarray,
    test_prompts: Sequence[str],
    embed: Embed | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Superior scores of every baseline on the test prompts.

    Args:
        train_prompts: the router's training rows; without any, only what needs no training is scored.
        train_targets: their superior probabilities, shape (n,).
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
        scores["majority"] = np.full(n, float(np.mean(train_targets >= 0.5) >= 0.5))
        scores["TF-IDF + logistic regression"] = _tfidf(train_prompts, train_targets, test_prompts)
    if len(train_prompts) and embed is not None:
        train, test = embed(train_prompts), embed(test_prompts)
        scores["embeddings + logistic regression"] = _logistic(train, train_targets, test)
        scores["embeddings + nearest neighbours"] = _neighbours(train, train_targets, test)
    return scores


def category_mean(train_categories: Sequence, train_targets: np.ndarray, test_categories: Sequence) -> np.ndarray:
    """Mean grade of the training rows of the same category, shape (len(test_categories),); of all where it has none."""
    sums: dict[object, list[float]] = {}
    for category, target in zip(train_categories, train_targets, strict=True):
        sums.setdefault(category, []).append(target)
    overall = float(np.mean(train_targets))
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
    """Logistic regression on soft targets: each row counts once as superior and once as inferior, by its grade."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    stack = sparse.vstack if sparse.issparse(train) else np.concatenate
    labels = np.repeat([1, 0], len(targets))
    weights = np.concatenate([targets, 1 - targets])
    return (
        LogisticRegression(C=10.0, max_iter=1000).fit(stack([train, train]), labels, weights).predict_proba(test)[:, 1]
    )


def drawn_to_neighbours(targets: np.ndarray, vectors: np.ndarray, weight: float) -> np.ndarray:
    """Grades, each drawn by `weight` (0..1) to what its nearest neighbours were graded: one judgement errs, many less.

    Args:
        targets: superior probabilities, shape (n,).
        vectors: unit embeddings of their prompts, shape (n, hidden size).
        weight: 0 leaves the grades as they are.

    Returns:
        Shape (n,), within 0.02..0.98: (1 - weight) grade + weight (a + b m), where m is the mean grade of the nearest
        other rows, and a and b are what predicts the grades best from it. Where neighbours say nothing b is near 0.
    """
    means = _neighbours(vectors, targets, vectors, leave_out_itself=True)
    slope = np.cov(means, targets)[0, 1] / max(np.var(means, ddof=1), 1e-9)
    predicted = np.clip(targets.mean() + slope * (means - means.mean()), 0.02, 0.98)
    return (1 - weight) * targets + weight * predicted


def _neighbours(train: np.ndarray, targets: np.ndarray, test: np.ndarray, leave_out_itself: bool = False) -> np.ndarray:
    """Mean grade of the nearest training prompts by cosine, weighted by it; `leave_out_itself`: test is train."""
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


def frozen_encoder(model_dir: str, max_length: int = 256) -> Embed:
    """Mean-pooled unit embeddings of an encoder that was not fine-tuned.

    Args:
        model_dir: a hub id or a local folder.
        max_length: tokens at most; a longer prompt keeps its head and tail.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from finetuning_model.training import bf16_pays
    from router_model import BATCH_TOKENS, PromptEncoder, batches_of_like_length

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(model_dir, dtype=torch.bfloat16 if bf16_pays() else torch.float32).eval()
    max_length = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model_dir).backend_tokenizer, max_length)
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @lru_cache(maxsize=1)  # the training prompts are asked for more than once
    @torch.inference_mode()
    def embed(prompts: tuple[str, ...]) -> np.ndarray:
        rows = [torch.tensor(row.ids) for row in encoder(prompts)]
        vectors = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
        for batch in batches_of_like_length([len(row) for row in rows], BATCH_TOKENS):
            ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True).to(model.device)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(rows[i]) for i in batch], batch_first=True)
            mask = mask.to(model.device)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
            mean = hidden.sum(1) / mask.sum(1, keepdim=True)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors

    return lambda prompts: embed(tuple(prompts))
