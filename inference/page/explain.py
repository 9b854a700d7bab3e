"""Why a prompt got its score: the words that push it either way."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router_model import Router

TOKENS_PER_EXPLANATION = 6_000  # what all the shortened copies of one prompt may add up to: about a second on a CPU
MAX_SPANS = 80
LOGIT_LIMIT = 12.0
MAX_GAP = 50  # characters between two pieces; more is the middle that was not scored

# A run of characters between spaces; one character in scripts without spaces between words (Chinese, Thai, ...).
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SPAN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class Span:
    """A piece of the prompt. `log_odds` and `probability` say what its presence adds towards the superior model."""

    text: str
    log_odds: float = 0.0
    probability: float = 0.0


def occlusion_effects(router: Router, prompt: str) -> list[Span]:
    """The scored text in pieces, each with what leaving it out changes (occlusion, Zeiler and Fergus 2014).

    Pieces are words, or runs of words where a long prompt has more than can be left out one by one. They come in
    order and include the white space; the unscored middle of a long prompt appears as one piece, " … ", and so does a
    frame before or behind the request.
    """
    text, ids, offsets = router.encoder.with_offsets(prompt)
    (request,) = router.find_requests([ids])
    is_framed = request.stop - request.start < sum(end > start for start, end in offsets)
    ids, offsets = router.encoder.alone(ids, request), router.encoder.alone(offsets, request)
    words = _token_groups(text, offsets)
    most = int(np.clip(TOKENS_PER_EXPLANATION / max(len(ids), 1), 8, MAX_SPANS))
    parts = np.array_split(range(len(words)), max(min(most, len(words)), 1))
    groups = [[token for i in part for token in words[i]] for part in parts if len(part)]
    without = [np.delete(ids, group).tolist() for group in groups]
    scores = router.score_ids([ids, *without])
    logits = _logit(scores)

    spans: list[Span] = []
    end = 0
    for group, logit, score in zip(groups, logits[1:], scores[1:], strict=True):
        if spans or is_framed:
            spans.append(Span(_shortened(text[end : offsets[group[0]][0]])))
        shown, end = _text_of(group, text, offsets)
        spans.append(Span(shown, float(logits[0] - logit), float(scores[0] - score)))
    return [*spans, Span(_shortened(text[end:]))] if is_framed else spans


def _text_of(tokens: list[int], text: str, offsets: list[tuple[int, int]]) -> tuple[str, int]:
    shown, end = "", offsets[tokens[0]][0]
    for start, stop in (offsets[i] for i in tokens):
        shown += _shortened(text[end:start]) + text[max(start, end) : stop]
        end = max(stop, end)
    return shown, end


def _shortened(gap: str) -> str:
    return gap if len(gap) <= MAX_GAP else " … "


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
