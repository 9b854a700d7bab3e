"""The pieces of HTML that the page shows. Whatever came from a user passes through `safe`."""

import base64
import html
import zlib
from collections.abc import Sequence

from inference.page.explain import Span
from inference.page.neighbours import Neighbour
from router_data import INFERIOR, TIER_NAMES, label_of
from router_model import Decision

MAX_PIECE = 300
MIN_SHOWN = 0.0005  # of probability; less would read as +0.000
PUNCTUATION = ".,;:!?()\"'"
HEADER = (
    "<header><h1>LLM router</h1><p>Does a prompt need the expensive superior model, or will the cheap inferior one do?"
    "</p></header>"
)
# Before there is a prompt
EMPTY_CARD = (
    '<section class="card"><h2>Which model does a prompt need?</h2><p>Type one, or choose an example.</p></section>'
)
STRENGTHS = {"strongly": 0.5, "clearly": 0.2, "a little": 0.0}  # from this share of the strongest word's effect on


def safe(text: str) -> str:
    """Text as HTML that shows it and can do nothing else, in an element, an attribute or a template string."""
    return html.escape(text).translate({ord(c): f"&#{ord(c)};" for c in "{}$`\\"})


def shortened(text: str, characters: int = MAX_PIECE) -> str:
    """The beginning of a longer text, up to a word's end where it has one."""
    return text if len(text) <= characters else f"{text[: characters + 1].rpartition(' ')[0] or text[:characters]} …"


def signed(number: float, digits: int = 3) -> str:
    """A change, with a real minus sign."""
    return f"{number:+.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share in percent with one decimal; what would round to 0% or 100% says that it is not."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    if 0.9995 <= share < 1:
        return "> 99.9%"
    return f"{share:.1%}"


def dollars(amount: float) -> str:
    """An amount of US dollars, small ones to two digits that mean something."""
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}"


def cost_change(cost: float, alone: float) -> str:
    """A cost beside that of the superior model alone."""
    if not alone:
        return ""
    change = round(100 * (cost / alone - 1))
    if not change:
        return f"as much as {dollars(alone)}"
    return f"{abs(change)}% {'less' if change < 0 else 'more'} than {dollars(alone)}"


def message(text: str, kind: str = "note") -> str:
    """One line; kind is "note", "warning" or "error"."""
    return f'<p class="{kind}">{safe(text)}</p>'


def checksum(text: str) -> int:
    """By which the page's script tells whether a card is about the text in the box (CRC-32 of its UTF-8)."""
    return zlib.crc32(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())


def decision_card(prompt: str, decision: Decision, money: str, notes: Sequence[str], beside: str = "") -> str:
    """The two probabilities, the decision in words, and what should make one doubt it.

    Args:
        prompt: what was decided on.
        decision: the router's.
        money: what such prompts cost.
        notes: reasons for doubt.
        beside: how it compares with the prompt that was kept for comparison.
    """
    superior, threshold = decision.router_score, decision.threshold
    name = TIER_NAMES[decision.router_label]
    verdict = "The inferior model will do" if decision.router_label == INFERIOR else "This needs the superior model"
    if decision.router_label != label_of(superior, threshold):
        verdict = f"Sent to the {name} model, whatever the score"
    inferior_text, superior_text, threshold_text = percent(1 - superior), percent(superior), percent(threshold)
    mark = 1 - threshold  # the superior part grows from the right and reaches the mark at the threshold
    return (
        f'<section class="card {name}" data-decision="{decision.router_label}" data-score="{superior:.6f}" '
        f'data-threshold="{threshold:.6f}" data-checksum="{checksum(prompt)}">'
        f'<p class="probabilities"><span class="inferior">Inferior <b>{safe(inferior_text)}</b></span>'
        f'<span class="superior">Superior <b>{safe(superior_text)}</b></span></p>'
        f'<div class="bar" role="img" aria-label="Inferior {safe(inferior_text)}, superior {safe(superior_text)}; the '
        f'superior model is asked from {safe(threshold_text)} on">'
        f'<div class="part inferior" style="width:{1 - superior:.4%}"></div>'
        f'<div class="part superior" style="width:{superior:.4%}"></div>'
        f'<div class="mark" style="left:{mark:.4%}"></div></div>'
        f'<p class="scale"><span style="--at:{mark:.4%}">threshold {safe(threshold_text)}</span></p>'
        f"<h2>{verdict}</h2>"
        f'<p class="money">{safe(f"{beside} {money}".strip())}</p>'
        f"{''.join(message(note, 'warning') for note in notes)}</section>"
    )


def kept_card(prompt: str, decision: Decision) -> str:
    """The prompt that was kept for comparison, with its probabilities."""
    superior, name = decision.router_score, TIER_NAMES[decision.router_label]
    return (
        f'<section class="card kept {name}"><h2 class="title">Kept for comparison</h2>'
        f'<p class="quoted" dir="auto">{safe(shortened(prompt))}</p>'
        f'<p class="probabilities"><span class="inferior">Inferior <b>{safe(percent(1 - superior))}</b></span>'
        f'<span class="superior">Superior <b>{safe(percent(superior))}</b></span></p>'
        f'<div class="bar" aria-hidden="true"><div class="part inferior" style="width:{1 - superior:.4%}"></div>'
        f'<div class="part superior" style="width:{superior:.4%}"></div></div></section>'
    )


def highlighted(spans: Sequence[Span]) -> list[tuple[str, str | None]]:
    """The prompt's pieces for `gr.HighlightedText`, each with the side it pushes to and how strongly."""
    strongest = max((abs(span.log_odds) for span in spans), default=0)
    scale = max(strongest, 0.5)  # where nothing matters much, nothing is coloured strongly
    return [(shortened(span.text), _category(span, scale)) for span in spans]


def _category(span: Span, scale: float) -> str | None:
    if not span.log_odds or abs(span.probability) < MIN_SHOWN or not span.text.strip():
        return None
    share = abs(span.log_odds) / scale
    strength = next(name for name, least in STRENGTHS.items() if share >= least)
    return f"{strength} {'superior' if span.log_odds > 0 else 'inferior'}"


def pushes(spans: Sequence[Span]) -> str:
    """The words that push most to either side, for those who do not see the colours."""
    return _strongest(spans, 1) + _strongest(spans, -1)


def _strongest(spans: Sequence[Span], sign: int, most: int = 3) -> str:
    pushing = (span for span in spans if sign * span.log_odds > 0 and abs(span.probability) >= MIN_SHOWN)
    ranked = sorted(pushing, key=lambda span: -sign * span.log_odds)
    side = "superior" if sign > 0 else "inferior"
    if not ranked:
        return f'<p class="push {side}"><b>Towards {side}</b>: next to nothing</p>'
    words = ", ".join(
        f"<bdi>{safe(shortened(span.text.strip(PUNCTUATION) or span.text, 40))}</bdi> "
        f"<bdi>({signed(span.probability)})</bdi>"
        for span in ranked[:most]
    )
    return f'<p class="push {side}"><b>Towards {side}</b>: {words}</p>'


def neighbours_html(neighbours: Sequence[Neighbour]) -> str:
    """The nearest labelled prompts with their labels."""
    title = '<h3 class="title">The nearest labelled prompts</h3>'
    if not neighbours:
        return title + message("None is much like this one.")
    items = "".join(
        f'<li class="{TIER_NAMES[near.label]}"><span class="tag">{TIER_NAMES[near.label]}</span> '
        f"<bdi>{safe(shortened(near.prompt, 180))}</bdi> <small><bdi>{near.similarity:.0%} alike</bdi></small></li>"
        for near in neighbours
    )
    return f'{title}<ul class="neighbours">{items}</ul>'


def stats_html(stats: Sequence[tuple[str, str, str]]) -> str:
    """Tiles of figure, what it is, and the small print beneath."""
    tiles = "".join(
        f"<div><dt>{safe(name)}</dt><dd>{safe(figure)}</dd><dd>{safe(detail)}</dd></div>"
        for figure, name, detail in stats
    )
    return f'<dl class="stats">{tiles}</dl>'


def list_html(title: str, items: Sequence[str]) -> str:
    """A short list under a title; nothing where it is empty."""
    if not items:
        return ""
    return f'<p class="title">{safe(title)}</p><ul class="plain">{"".join(f"<li>{safe(i)}</li>" for i in items)}</ul>'


def figure_html(caption: str, png: bytes) -> str:
    """A picture that is part of the page, with its caption."""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{safe(caption)}</figcaption></figure>'


def table_html(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    body = "".join(f'<tr><th scope="row">{safe(name)}</th><td>{safe(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts"><caption>{safe(caption)}</caption><tbody>{body}</tbody></table>'
