"""The pieces of HTML and SVG that the page shows. Whatever came from a user passes through `safe`."""

import html
from collections.abc import Sequence

import numpy as np

from finetuning_model.choose_threshold import Tradeoff
from inference.page.explain import Neighbour, Span
from router_data import INFERIOR, SUPERIOR, label_of
from router_model import Decision

NAMES = {INFERIOR: "inferior", SUPERIOR: "superior"}
LONGEST_PIECE = 300
LEAST_SHOWN = 0.0005  # of probability; less is 0.000 as it is written
BINS = 20
PUNCTUATION = ".,;:!?()\"'"


def safe(text: str) -> str:
    """Text as HTML that shows it and can do nothing else, in an element, an attribute or a template string."""
    return html.escape(text).translate({ord(c): f"&#{ord(c)};" for c in "{}$`\\"})


def shortened(text: str, characters: int = LONGEST_PIECE) -> str:
    """The beginning of a longer text, up to a word's end where it has one."""
    return text if len(text) <= characters else f"{text[: characters + 1].rpartition(' ')[0] or text[:characters]} …"


def signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def message(text: str, kind: str = "note") -> str:
    """One line; kind is "note", "warning" or "error"."""
    return f'<p class="{kind}">{safe(text)}</p>'


def header(checkpoint: str, details: str) -> str:
    return (
        "<header><h1>LLM router</h1><p>Does a prompt need the expensive model, or will the cheap one do?</p>"
        f'<p class="checkpoint"><code>{safe(checkpoint)}</code> <span>{safe(details)}</span></p></header>'
    )


def decision_card(decision: Decision, money: str, notes: Sequence[str]) -> str:
    p = decision.router_score
    name = NAMES[decision.router_label]
    verdict = "The inferior model will do" if decision.router_label == INFERIOR else "This needs the superior model"
    probabilities = "".join(
        f'<div class="{NAMES[label]}" data-label="{label}"><dt>{label}</dt><dd>{value:.3f}</dd></div>'
        for label, value in ((INFERIOR, 1 - p), (SUPERIOR, p))
    )
    return (
        f'<section class="card {name}" data-decision="{decision.router_label}"><h2>{verdict}</h2>'
        f'<div class="bar" role="img" aria-label="Superior probability {p:.3f}, threshold {decision.threshold:.3f}">'
        f'<div class="fill" style="width:{p:.2%}"></div>'
        f'<div class="mark" style="left:{decision.threshold:.2%}"></div></div>'
        f'<dl class="probabilities">{probabilities}</dl>'
        f'<p class="money">Superior from {decision.threshold:.3f} on. {safe(money)}</p>'
        f"{''.join(message(note, 'warning') for note in notes)}</section>"
    )


def empty_card() -> str:
    return (
        '<section class="card"><h2>Which model does a prompt need?</h2><p>Type one, or choose an example.</p></section>'
    )


def words_html(spans: Sequence[Span]) -> str:
    """The prompt in colours, then the same in words for those who do not see them."""
    strongest = max((abs(span.log_odds) for span in spans), default=0)
    scale = max(strongest, 0.5)  # where nothing matters much, nothing is coloured strongly
    pieces = []
    for span in spans:
        text = safe(shortened(span.text))
        if not span.log_odds:
            pieces.append(text)
            continue
        side = "superior" if span.log_odds > 0 else "inferior"
        pieces.append(
            f'<mark class="{side}" style="--strength:{abs(span.log_odds) / scale:.0%}" '
            f'data-effect="{span.log_odds:.3f}" title="{signed(span.probability)} superior probability">{text}</mark>'
        )
    title = '<h3 class="title">Why: what each word adds</h3>'
    return f'{title}<p class="words">{"".join(pieces)}</p>{_strongest(spans, 1)}{_strongest(spans, -1)}'


def _strongest(spans: Sequence[Span], sign: int, most: int = 3) -> str:
    pushing = (span for span in spans if sign * span.log_odds > 0 and abs(span.probability) >= LEAST_SHOWN)
    ranked = sorted(pushing, key=lambda span: -sign * span.log_odds)
    side = "superior" if sign > 0 else "inferior"
    if not ranked:
        return f'<p class="push {side}"><b>Towards {side}</b>: next to nothing</p>'
    words = ", ".join(
        f"{safe(shortened(span.text.strip(PUNCTUATION) or span.text, 40))} ({signed(span.probability)})"
        for span in ranked[:most]
    )
    return f'<p class="push {side}"><b>Towards {side}</b>: {words}</p>'


def neighbours_html(neighbours: Sequence[Neighbour]) -> str:
    title = '<h3 class="title">The nearest labelled prompts</h3>'
    if not neighbours:
        return title + message("None is much like this one.")
    items = "".join(
        f'<li><span class="tag {NAMES[near.label]}">{NAMES[near.label]}</span> '
        f"{safe(shortened(near.prompt, 180))} <small>{near.similarity:.0%} alike</small></li>"
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


def curve_svg(curve: Tradeoff, share: float, quality: float) -> str:
    """Quality kept against the share sent to the superior model, with the threshold's place on it and random's line."""
    low = float(curve.quality.min())
    span = max(1 - low, 1e-9)
    x, y = lambda value: 34 + 256 * value, lambda value: 12 + 96 * (1 - (value - low) / span)
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(curve.superior_share, curve.quality, strict=True))
    return (
        '<svg class="chart" viewBox="0 0 300 132" role="img" aria-label="Quality kept against the share sent to the '
        f'superior model; now {share:.0%} sent and {quality:.1%} kept">'
        f'<line class="axis" x1="34" y1="108" x2="290" y2="108"/>'
        f'<line class="random" x1="34" y1="{y(low):.1f}" x2="290" y2="12"/>'
        f'<polyline class="curve" points="{points}"/>'
        f'<circle class="here" cx="{x(share):.1f}" cy="{y(quality):.1f}" r="5"/>'
        f'<text x="30" y="16" text-anchor="end">100%</text><text x="30" y="111" text-anchor="end">{low:.0%}</text>'
        '<text x="34" y="124">none superior</text><text x="290" y="124" text-anchor="end">all superior</text>'
        '<text x="206" y="84" class="faint">dashed: at random</text></svg>'
    )


def histogram_svg(scores: np.ndarray, threshold: float) -> str:
    """How many prompts got which probability, coloured by where they go."""
    counts, edges = np.histogram(scores, bins=BINS, range=(0, 1))
    bars = "".join(
        f'<rect class="{NAMES[label_of((a + b) / 2, threshold)]}" x="{10 + 280 * a:.1f}" width="{280 / BINS - 2:.1f}" '
        f'y="{108 - 94 * n / counts.max():.1f}" height="{94 * n / counts.max():.1f}">'
        f"<title>{n:,} prompts from {a:.2f} to {b:.2f}</title></rect>"
        for n, a, b in zip(counts, edges, edges[1:], strict=False)
    )
    mark = 10 + 280 * threshold
    return (
        '<svg class="chart" viewBox="0 0 300 126" role="img" aria-label="Histogram of the superior probabilities; '
        f'{(scores >= threshold).mean():.0%} reach the threshold">{bars}<line class="axis" x1="10" y1="108" x2="290" '
        f'y2="108"/><line class="threshold" x1="{mark:.1f}" y1="8" x2="{mark:.1f}" y2="108"/>'
        '<text x="10" y="121">0</text><text x="150" y="121" text-anchor="middle">superior probability</text>'
        '<text x="290" y="121" text-anchor="end">1</text></svg>'
    )
