"""What the page answers about one prompt and one threshold, without gradio."""

import re
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas

from inference.page import html_parts
from inference.page.explain import occlusion_effects
from inference.page.html_parts import cost_change, dollars
from inference.page.neighbours import LabelledPrompts, labelled_prompts
from router_data import (
    INFERIOR,
    LABELS,
    SUPERIOR,
    TIER_NAMES,
    LabelledPrompt,
    Prices,
    RowAppender,
    normalise_prompt,
    now,
    read_rows,
    write_rows,
)
from router_model import Decision, Router, TradeoffTable, Verdict

CURVE_POINTS = 60
MAX_FOLLOW_UP_WORDS = 8
# Ends the names that choose_threshold.py --confidence saves
GUARANTEE = re.compile(r"_with_[\d.]+_percent_confidence$")
# How people begin a message that means nothing without the one before it
FOLLOW_UP = re.compile(
    r"((and|but|or|so|also)\b|(why|why not|how so|continue|go on|more|again|shorter|longer|simpler|another one)\W*$"
    r"|(what|how) about\b|are you sure\b"
    r"|prove (it|that|this)(?=\W*$|,? (again|formally|now|please|rigorously|too)\b)"  # "prove that ..." stands alone
    r"|(?!.*[:\n])(make|do|fix|change|rewrite|translate|explain|shorten) (it\b|(that|this)"
    r"(?=\W*$|,? (again|as|by|for|from|in|into|less|like|more|now|please|to|too|using|with|without|\w+er)\b)))",
    re.IGNORECASE,
)


class Page:
    """What the page knows of one checkpoint: each method answers one event.

    Args:
        router: a checkpoint that was loaded from a folder.
        threshold: where the slider starts (default: the checkpoint's).
        feedback_file: where Right and Wrong are written; None: nowhere.
    """

    def __init__(self, router: Router, threshold: float | None = None, feedback_file: Path | None = None) -> None:
        assert router.model_save_dir
        self.router, self.folder = router, router.model_save_dir
        self.name = self.folder.name
        self.threshold = router.settings.threshold if threshold is None else threshold
        self.feedback_file = feedback_file
        self.labelled = LabelledPrompts(router, labelled_prompts(self.folder))
        self.tradeoff, self.verdict = TradeoffTable.load(self.folder), Verdict.load(self.folder)
        self._writing = threading.Lock()

    def presets(self) -> dict[str, float]:
        """What the checkpoint's thresholds are called, and their values; the one the page starts with comes first."""
        named = {"as started": self.threshold, **self.router.settings.thresholds}
        return {f"{in_words(name)} ({value:.1%})": value for name, value in named.items()}

    def preset_of(self, threshold: float) -> str | None:
        """The preset that this threshold is; None for one of the user's own."""
        return next((name for name, value in self.presets().items() if is_same(value, threshold)), None)

    def decide(self, prompt: str) -> Decision | None:
        """The decision at the page's own threshold; None for a blank prompt."""
        return self.router.decide([prompt], self.threshold)[0] if prompt.strip() else None

    def at_threshold(self, decision: Decision, threshold: float) -> Decision:
        """The same score at another threshold."""
        label = self.router.route(decision.router_score, threshold, decision.unfamiliar)
        return replace(decision, router_label=label, threshold=threshold)

    def card(
        self,
        prompt: str,
        decision: Decision | None,
        threshold: float,
        prices: Prices,
        kept: tuple[str, Decision] | None = None,
    ) -> str:
        """The card of a decision at a threshold, compared with another where one is kept."""
        if decision is None:
            return html_parts.EMPTY_CARD
        shown = self.at_threshold(decision, threshold)
        cost, alone = prices.per_thousand(shown.router_label == SUPERIOR), prices.per_thousand(1)
        money = f"A thousand such prompts cost {dollars(cost)}"
        money += f" instead of {dollars(alone)}." if shown.router_label == INFERIOR else "."
        beside = ""
        if kept:
            points = 100 * (decision.router_score - kept[1].router_score)
            change = html_parts.signed(points, digits=1)
            beside = f"Superior {change} percentage points against the prompt kept for comparison."
        return html_parts.decision_card(prompt, shown, money, self.notes(prompt, decision), beside)

    def kept_card(self, kept: tuple[str, Decision] | None, threshold: float) -> str:
        """The card of the prompt that is kept for comparison."""
        return html_parts.kept_card(kept[0], self.at_threshold(kept[1], threshold)) if kept else ""

    def notes(self, prompt: str, decision: Decision) -> list[str]:
        """What should make one doubt the score."""
        notes = []
        if decision.framed:
            notes.append(
                "A part of this text looks like the request, the rest like what an application wraps around it: only "
                f"that part, {decision.tokens_scored} tokens, was scored."
            )
        elif decision.truncated:
            notes.append(
                f"This prompt has {decision.characters_received:,} characters. It was cut: only its beginning and its "
                f"end, {decision.tokens_scored} tokens together, were scored."
            )
        if decision.unfamiliar:
            route = self.router.settings.unfamiliar_route
            goes = "" if route == "score" else f" Such prompts go to the {route} model."
            notes.append(f"The router cannot read most of this text, so its score says little.{goes}")
        elif len(prompt.split()) <= MAX_FOLLOW_UP_WORDS and FOLLOW_UP.match(prompt.strip()):
            notes.append(
                "This looks like a follow-up. The router saw only this line; in a conversation it reads the earlier "
                "turns too."
            )
        return notes

    def predict(self, prompt: str, threshold: float | None = None) -> dict:
        """The route of a prompt and the numbers it rests on, by name.

        Raises:
            ValueError: the prompt is blank, or the threshold is not between 0 and 1.
        """
        threshold = self.threshold if threshold is None else threshold
        if not prompt.strip():
            raise ValueError("the prompt is blank")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is not between 0 and 1")
        (decision,) = self.router.decide([prompt], threshold)
        return {
            "route": TIER_NAMES[decision.router_label],
            "router_label": decision.router_label,
            "router_score": round(decision.router_score, 6),
            "superior_probability": round(decision.router_score, 6),
            "inferior_probability": round(1 - decision.router_score, 6),
            "threshold": threshold,
            "truncated": decision.truncated,
            "framed": decision.framed,
            "unfamiliar": decision.unfamiliar,
            "tokens_scored": decision.tokens_scored,
            "router": self.name,
        }

    def words(self, prompt: str) -> tuple[list[tuple[str, str | None]], str]:
        """The prompt's pieces with their colours, and the strongest of them in words."""
        spans = occlusion_effects(self.router, prompt)
        return html_parts.highlighted(spans), html_parts.pushes(spans)

    def near(self, prompt: str, is_local: bool) -> str:
        """The nearest labelled prompts; they are other people's, so only for the user of this machine."""
        if not is_local or not self.labelled.prompts:
            return ""
        if not self.labelled.is_ready:
            done, of = self.labelled.done, len(self.labelled.prompts)
            return html_parts.message(f"The labelled prompts can be searched soon: {done:,} of {of:,} are read.")
        return html_parts.neighbours_html(self.labelled.nearest(prompt))

    def figures(self, threshold: float, prices: Prices) -> str:
        """What the threshold means: share, quality and cost as measured, what is guaranteed, and whether it pays."""
        return self._measured(threshold, prices) + self._guarantee(threshold) + self._verdict(threshold)

    def _guarantee(self, threshold: float) -> str:
        """What choose_threshold.py --confidence guaranteed, and whether it holds at this threshold."""
        made = {name: value for name, value in self.router.settings.thresholds.items() if GUARANTEE.search(name)}
        holding = [name for name, value in made.items() if is_same(value, threshold)]
        lines = [f"{in_words(name)}, on new prompts like those it was chosen on." for name in holding]
        if made and not holding:
            name, value = list(made.items())[-1]
            lines = [f"None at this threshold; {in_words(name)} is guaranteed at {value:.1%}."]
        return html_parts.list_html("Guarantee", [line[0].upper() + line[1:] for line in lines])

    def _verdict(self, threshold: float) -> str:
        """Whether routing pays, as evaluate_router.py found it on outcomes."""
        if self.verdict is None:
            return ""
        sentences = [*self.verdict.sentences, f"Judged on {self.verdict.measured_on}."]
        if not is_same(self.verdict.threshold, threshold):
            sentences.append(f"It was judged at the threshold {self.verdict.threshold:.1%}, not at this one.")
        return html_parts.list_html("Does routing pay?", sentences)

    def _measured(self, threshold: float, prices: Prices) -> str:
        alone = prices.per_thousand(1)
        if self.tradeoff is None:
            between = f"between {dollars(prices.per_thousand(0))} and {dollars(alone)} for 1,000 prompts"
            return html_parts.message(
                f"This checkpoint has no tradeoff.json, so what a threshold brings is not known: {between}. "
                "Training with finetune_bert.py measures it."
            )
        table, at = self.tradeoff, self.tradeoff.at(threshold)
        share, cost = table.superior_share[at], prices.per_thousand(table.superior_share[at])
        at_random = table.inferior_quality + share * (1 - table.inferior_quality)
        stats = [
            (f"{share:.0%}", "to the superior model", f"of {table.rows:,} prompts"),
            (
                f"{table.quality[at]:.1%}",
                "quality kept",
                f"95% interval {table.quality_low[at]:.1%} to {table.quality_high[at]:.1%}; at random {at_random:.1%}",
            ),
            (dollars(cost), "for 1,000 prompts", cost_change(cost, alone)),
        ]
        return html_parts.stats_html(stats) + html_parts.message(f"Measured on {table.measured_on}.")

    def curve(self, threshold: float) -> pandas.DataFrame | None:
        """The cost-quality curve for `gr.LinePlot`: columns share, quality, line; None where it was not measured."""
        if self.tradeoff is None:
            return None
        table, at = self.tradeoff, self.tradeoff.at(threshold)
        step = max(1, len(table.thresholds) // CURVE_POINTS)
        share, quality = table.superior_share[at], table.quality[at]
        points = sorted(zip(table.superior_share[::step], table.quality[::step], strict=True))
        lowest = min(table.quality + [table.inferior_quality])
        rows = [
            *((x, y, "this router") for x, y in points),
            *((x, y, "at random") for x, y in ((0, table.inferior_quality), (1, 1))),
            *((x, y, "threshold") for x, y in ((share, lowest), (share, quality))),
        ]
        return pandas.DataFrame(rows, columns=["share", "quality", "line"])

    def give_feedback(self, prompt: str, decision: Decision, threshold: float, right: bool, user: str | None) -> str:
        """Write what the user says about a route as a labelled prompt, and say so.

        A prompt has one row: a second opinion takes the first one's place, since stage 3 stops at contradictions.
        """
        if self.feedback_file is None:
            return "Feedback is off on this page."
        routed = self.at_threshold(decision, threshold).router_label
        label = routed if right else next(other for other in LABELS if other != routed)
        row = LabelledPrompt.model_validate(
            {
                "prompt": prompt,
                "label": label,
                "source": "router_page",
                "labelled_by": "human",
                "labelled_at": now(),
                **({"user": user} if user else {}),
            }
        )
        with self._writing:
            rows: list[LabelledPrompt] = list(read_rows(self.feedback_file)) if self.feedback_file.exists() else []
            others = [old for old in rows if normalise_prompt(old.prompt) != normalise_prompt(prompt)]
            if len(others) < len(rows):
                write_rows(self.feedback_file, [*others, row])
            else:
                with closing(RowAppender(self.feedback_file)) as file:
                    file.append(row)
        return f"Noted as {TIER_NAMES[label]}: row {len(others) + 1:,} of {self.feedback_file}, which training reads."


def in_words(name: str) -> str:
    """The name of a threshold in router.json, as people read it."""
    return name.replace("_percent", "%").replace("_", " ")


def is_same(one: float, other: float) -> bool:
    """Whether two thresholds are one, as precisely as the slider sets them."""
    return abs(one - other) < 0.0005
