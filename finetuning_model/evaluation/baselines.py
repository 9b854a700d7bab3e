"""What a router has to beat, trained on the same rows: prompt length, TF-IDF, and the frozen encoder's embeddings."""

from collections.abc import Callable, Sequence

import numpy as np

from router_data import batches_with_progress

ROUTER = "this router"  # what a report calls the router itself among its scorers
PARENT = "the router it went on from"
ALWAYS_INFERIOR = "always inferior"
ALWAYS_SUPERIOR = "always superior"
RANDOM = "random"
PROMPT_LENGTH = "prompt length"
MAJORITY = "majority"
CATEGORY_MEAN = "category's mean"
ORACLE_BY_CATEGORY = "oracle by category"  # knows the judged prompts' own gains: shown, but no verdict rests on it

NEIGHBOURS = 15
CHUNK = 1024  # prompts embedded between two lines of progress

Embed = Callable[[Sequence[str]], np.ndarray]  # prompts -> unit vectors (n, hidden size)


def baseline_scores(
    train_prompts: Sequence[str],
    train_soft_labels: np.ndarray,
    test_prompts: Sequence[str],
    embed: Embed | None = None,
    seed: int = 0,
    most_embedded: int | None = None,
) -> dict[str, np.ndarray]:
    """Superior scores of every baseline on the test prompts.

    Args:
        train_prompts: the router's training rows; without any, only what needs no training is scored.
        train_soft_labels: their superior probabilities, shape (n,).
        test_prompts: what to score.
        embed: the frozen encoder; without it the two baselines on embeddings are left out.
        seed: of the random router and of the draw.
        most_embedded: the two baselines on embeddings learn from at most this many rows, drawn at random; None: all.

    Returns:
        Name -> scores of shape (len(test_prompts),). All but `prompt length` (characters) are probabilities.
    """
    n = len(test_prompts)
    scores = {
        ALWAYS_INFERIOR: np.zeros(n),
        ALWAYS_SUPERIOR: np.ones(n),
        RANDOM: np.random.default_rng(seed).random(n),
        PROMPT_LENGTH: np.array([len(prompt) for prompt in test_prompts], dtype=float),
    }
    if len(train_prompts):
        scores[MAJORITY] = np.full(n, float(np.mean(train_soft_labels >= 0.5) >= 0.5))
        scores["TF-IDF + logistic regression"] = _tfidf(train_prompts, train_soft_labels, test_prompts)
    if len(train_prompts) and embed is not None:
        drawn = np.random.default_rng(seed).permutation(len(train_prompts))[:most_embedded]
        train, test = embed([train_prompts[i] for i in drawn]), embed(test_prompts)
        scores["embeddings + logistic regression"] = _logistic(train, train_soft_labels[drawn], test)
        scores["embeddings + nearest neighbours"] = _neighbours(train, train_soft_labels[drawn], test)
    return scores


def category_mean(train_categories: Sequence, train_values: np.ndarray, test_categories: Sequence) -> np.ndarray:
    """Mean value of the training rows of the same category (of all where it has none), shape (len(test),)."""
    values: dict[object, list[float]] = {}
    for category, value in zip(train_categories, train_values, strict=True):
        values.setdefault(category, []).append(value)
    overall = float(np.mean(train_values))
    return np.array([np.mean(values[category]) if category in values else overall for category in test_categories])


def category_gain_of_other_half(categories: Sequence, gain: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean gain of the same category in the half of the rows that the row itself is not in, shape (n,).

    It knows the judged prompts' own categories and gains, which no router does: what the category alone could give.
    """
    half = np.random.default_rng(seed).permutation(len(gain)) % 2
    names = np.asarray(categories)
    scores = np.empty(len(gain))
    for part in (0, 1):
        scores[half == part] = category_mean(names[half != part], gain[half != part], names[half == part])
    return scores


def _tfidf(train_prompts: Sequence[str], soft_labels: np.ndarray, test_prompts: Sequence[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
    return _logistic(vectorizer.fit_transform(train_prompts), soft_labels, vectorizer.transform(test_prompts))


def _logistic(train, soft_labels: np.ndarray, test) -> np.ndarray:
    """Logistic regression on soft labels: each row counts once as superior and once as inferior, by its soft label."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    stack = sparse.vstack if sparse.issparse(train) else np.concatenate
    classes = np.repeat([1, 0], len(soft_labels))
    weights = np.concatenate([soft_labels, 1 - soft_labels])
    model = LogisticRegression(C=10.0, max_iter=1000).fit(stack([train, train]), classes, weights)
    return model.predict_proba(test)[:, 1]


def _neighbours(train: np.ndarray, soft_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mean soft label of the nearest training prompts by cosine, weighted by it."""
    nearest = min(NEIGHBOURS, len(train))
    scores = np.empty(len(test))
    for start in range(0, len(test), 1024):
        cosine = test[start : start + 1024] @ train.T
        top = np.argpartition(-cosine, nearest - 1, axis=1)[:, :nearest]
        weight = np.clip(np.take_along_axis(cosine, top, axis=1), 1e-6, None)
        scores[start : start + 1024] = (weight * soft_labels[top]).sum(1) / weight.sum(1)
    return scores


def frozen_encoder(base: str, max_length: int = 256) -> Embed:
    """Mean-pooled unit embeddings of an encoder that was not fine-tuned, in fp32.

    Args:
        base: a hub id or a local folder.
        max_length: tokens at most; a longer prompt keeps its head and tail.

    Raises:
        InputError: it can't be had.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from finetuning_model.encoders import load_tokenizer, named_faults, readable_tokens
    from router_model import PromptEncoder, run_in_batches

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with named_faults(base):
        model = AutoModel.from_pretrained(base, dtype=torch.float32, trust_remote_code=False).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    max_length = min(max_length, readable_tokens(model.config, max_length))
    tokenizer = load_tokenizer(base)
    encoder = PromptEncoder(tokenizer.backend_tokenizer, max_length)

    def mean_pooled(ids, mask):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
        return torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=1)

    def embed(prompts: Sequence[str]) -> np.ndarray:
        rows = [row.ids for row in encoder.encode(prompts)]
        chunks = batches_with_progress(rows, CHUNK, "embedding prompts for the baselines")
        return np.concatenate(
            [run_in_batches(mean_pooled, list(chunk), tokenizer.pad_token_id or 0) for chunk in chunks]
        )

    return embed
