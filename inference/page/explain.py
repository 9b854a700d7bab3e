"""Why a prompt got its score: the words that push it either way, and the labelled prompts most like it."""

import json
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_data import LABELS
from router_model import Router

TOKENS_PER_EXPLANATION = 6_000  # what all the shortened copies of one prompt may add up to: about a second on a CPU
MOST_SPANS = 80
LABELLED_FILES = ("validation_predictions.jsonl", "predictions.jsonl")
MOST_LABELLED = 20_000
SEARCHED_CHARACTERS = 20_000
FEWEST_WORDS = 4  # fewer than these say nothing about the language
LOGIT_LIMIT = 12.0
LEAST_SIMILARITY = 0.1  # below this only little words are shared
LONGEST_GAP = 50  # characters between two pieces; more is what was not scored

# A run of letters and digits; where words aren't set apart by spaces (Chinese, Japanese, Thai), one character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
SPAN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class Span:
    """A piece of the prompt. `log_odds` and `probability` say what its presence adds towards the superior model."""

    text: str
    log_odds: float = 0.0
    probability: float = 0.0


@dataclass(frozen=True)
class Neighbour:
    """A labelled prompt like the one asked about; `similarity` is the cosine of their TF-IDF vectors, 0..1."""

    prompt: str
    label: str
    similarity: float


def word_effects(router: Router, prompt: str) -> list[Span]:
    """The scored text in pieces, each with what leaving it out changes (occlusion, Zeiler and Fergus 2014).

    Pieces are words, or runs of words where a long prompt has more than can be left out one by one. They come in
    order and include the white space; the unscored middle of a long prompt appears as one piece, " … ".
    """
    text, ids, offsets = router.encoder.with_offsets(prompt)
    words = _token_groups(text, offsets)
    most = int(np.clip(TOKENS_PER_EXPLANATION / max(len(ids), 1), 8, MOST_SPANS))
    parts = np.array_split(range(len(words)), max(min(most, len(words)), 1))
    groups = [[token for i in part for token in words[i]] for part in parts if len(part)]
    without = [np.delete(ids, group).tolist() for group in groups]
    scores = router.score_ids([ids, *without])
    logits = _logit(scores)

    spans, end = [], 0
    for group, logit, score in zip(groups, logits[1:], scores[1:], strict=True):
        if spans:
            spans.append(Span(_shortened(text[end : offsets[group[0]][0]])))
        shown, end = _text_of(group, text, offsets)
        spans.append(Span(shown, float(logits[0] - logit), float(scores[0] - score)))
    return spans


def _text_of(tokens: list[int], text: str, offsets: list[tuple[int, int]]) -> tuple[str, int]:
    shown, end = "", offsets[tokens[0]][0]
    for start, stop in (offsets[i] for i in tokens):
        shown += _shortened(text[end:start]) + text[max(start, end) : stop]
        end = max(stop, end)
    return shown, end


def _shortened(gap: str) -> str:
    return gap if len(gap) <= LONGEST_GAP else " … "


def _token_groups(text: str, offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Positions of the tokens of each word, in order; special tokens belong to none."""
    starts = np.array([match.start() for match in SPAN.finditer(text)])
    groups: dict[int, list[int]] = {}
    for i, (start, end) in enumerate(offsets):
        if end > start and len(starts):
            groups.setdefault(int(np.searchsorted(starts, end - 1, side="right")), []).append(i)
    return list(groups.values())


def _logit(probability: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probability) - np.log1p(-probability), -LOGIT_LIMIT, LOGIT_LIMIT)


class LabelledPrompts:
    """The labelled prompts that came with a checkpoint, searchable by TF-IDF over words and pairs of words.

    The first search makes the index, which takes seconds; `index` makes it beforehand, in any thread.

    Args:
        rows: prompt and label of each; may be empty, then nothing is ever found.
    """

    def __init__(self, rows: dict[str, str]):
        self.prompts = list(rows)[:MOST_LABELLED]
        self.labels = [rows[prompt] for prompt in self.prompts]
        self.vocabulary = {word for prompt in self.prompts for word in _words(prompt)}
        self._indexing = threading.Lock()
        self._matrix = None

    def index(self) -> None:
        """Make ready for `nearest`; does nothing the second time."""
        with self._indexing:
            if self._matrix is None and self.vocabulary:
                from sklearn.feature_extraction.text import TfidfVectorizer

                self._tfidf = TfidfVectorizer(analyzer=_words_and_pairs, sublinear_tf=True, dtype=np.float32)
                self._matrix = self._tfidf.fit_transform(self.prompts)

    @classmethod
    def of_checkpoint(cls, model_save_dir: Path) -> "LabelledPrompts":
        """Those in the checkpoint's predictions and in the training files its `run.json` names, where they are."""
        files = [model_save_dir / name for name in LABELLED_FILES]
        try:
            run = json.loads((model_save_dir / "run.json").read_bytes())
            files += [Path(name) for name in run.get("train_files", [])]
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # a bare folder has none; this one is not ours
        rows: dict[str, str] = {}
        for file in files:
            try:
                with open(file, encoding="utf-8") as lines:
                    for row in map(json.loads, filter(str.strip, lines)):
                        if row.get("label") in LABELS:  # outcomes have none
                            rows.setdefault(row["prompt"], row["label"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, AttributeError) as error:
                warnings.warn(f"{file} is not shown as labelled prompts: {type(error).__name__}", stacklevel=2)
        return cls(rows)

    def nearest(self, prompt: str, k: int = 3) -> list[Neighbour]:
        """The k most similar labelled prompts, fewer where few are like this one."""
        if not self.vocabulary:
            return []
        self.index()
        similarity = (self._matrix @ self._tfidf.transform([prompt[:SEARCHED_CHARACTERS]]).T).toarray()[:, 0]
        best = np.argsort(-similarity, kind="stable")[:k]
        return [
            Neighbour(self.prompts[i], self.labels[i], float(similarity[i]))
            for i in best
            if similarity[i] >= LEAST_SIMILARITY
        ]

    def known_share(self, prompt: str) -> float:
        """Share of the prompt's words that occur in any labelled prompt; 1.0 where there is too little to tell."""
        words = _words(prompt[:SEARCHED_CHARACTERS])
        if not self.vocabulary or len(words) < FEWEST_WORDS:
            return 1.0
        return sum(word in self.vocabulary for word in words) / len(words)


def _words(prompt: str) -> list[str]:
    return WORD.findall(prompt.lower())


def _words_and_pairs(prompt: str) -> list[str]:
    words = _words(prompt)
    return words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
