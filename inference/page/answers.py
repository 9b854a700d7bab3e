"""What the page answers, without gradio: decisions, reasons, what a threshold saves, scored files, feedback."""

import csv
import json
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from finetuning_model.choose_threshold import tradeoff_of_grades
from finetuning_model.evaluation.metrics import Estimate, bootstrap_weights, estimate
from inference.page import html_parts
from inference.page.explain import LabelledPrompts, word_effects
from router_data import (
    INFERIOR,
    SUPERIOR,
    InputError,
    LabelledPrompt,
    encode_row,
    label_of,
    normalise_prompt,
    read_rows,
    write_rows,
)
from router_model import Decision, Router

VALIDATION_FILE = "validation_predictions.jsonl"
PROMPTS_PER_STEP = 100  # of the progress bar
FEW_KNOWN_WORDS = 0.5
QUALITY_NOTE = (
    "Estimated on the validation prompts: a superior answer is always good enough, an inferior one with probability "
    "1 − the labeller's grade."
)
FILE_HINT = "JSONL and CSV need a field named prompt; in a text file every line is a prompt."
EXPLAIN_HINT = "The decision follows as you type. Shift+Enter, or the button, explains it."


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens of each model, and the tokens of a prompt with its answer."""

    inferior: float
    superior: float
    tokens: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Prices":
        """From the page's three fields, of which any may have been emptied."""
        return cls(*(value or 0 for value in values))

    def per_thousand(self, share_superior: float) -> float:
        """Dollars for 1,000 prompts of which this share goes to the superior model."""
        return self.tokens / 1000 * (share_superior * self.superior + (1 - share_superior) * self.inferior)


class Validation:
    """The scored validation rows of a checkpoint: what a threshold would have done to them.

    An inferior answer counts as good enough with probability 1 - target, a superior one always.

    Args:
        scores: superior probabilities by the router, shape (n,).
        targets: superior probabilities by the labeller, shape (n,).
    """

    def __init__(self, scores: np.ndarray, targets: np.ndarray):
        self.scores = scores
        self.good_enough = 1 - targets
        self.curve = tradeoff_of_grades(scores, targets)
        self._draws = bootstrap_weights(len(scores))

    @classmethod
    def read(cls, path: Path) -> "Validation | None":
        """From `validation_predictions.jsonl`; None, with a warning unless it is absent, where it can't be read."""
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            table = np.array([[row["superior_probability"], row["target"]] for row in rows], dtype=np.float64)
            return cls(table[:, 0], table[:, 1])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            warnings.warn(f"{path} is not used: {type(error).__name__}: {error}", stacklevel=2)
            return None

    def share(self, threshold: float) -> float:
        """Share of prompts that go to the superior model."""
        return float((self.scores >= threshold).mean())

    def quality(self, threshold: float) -> Estimate:
        """Expected share of answers that are good enough, with its 95% bootstrap interval."""

        def kept(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return weights @ np.where(scores >= threshold, 1, self.good_enough) / weights.sum(1)

        return estimate(kept, self.scores, self._draws)

    def at_random(self, share: float) -> float:
        """Quality kept by sending this share of the prompts to the superior model at random."""
        return share + (1 - share) * float(self.good_enough.mean())


@dataclass(frozen=True)
class ScoredFile:
    """A file that was dropped on the page: where it lies, and a probability for each row (nan: its prompt is blank)."""

    path: Path
    scores: np.ndarray

    @property
    def of_prompts(self) -> np.ndarray:
        return self.scores[~np.isnan(self.scores)]


class Page:
    """What the page knows and does, without gradio: each method answers one event.

    Args:
        router: the loaded checkpoint.
        feedback_file: where Right and Wrong are written; None: there are no such buttons.
    """

    def __init__(self, router: Router, threshold: float | None = None, feedback_file: Path | None = None):
        self.router = router
        self.threshold = router.settings.threshold if threshold is None else threshold
        self.feedback_file = feedback_file
        self.labelled = LabelledPrompts.of_checkpoint(router.model_save_dir)
        self.validation = Validation.read(router.model_save_dir / VALIDATION_FILE)
        self._writing = threading.Lock()
        unknown = getattr(router.encoder.tokenizer.model, "unk_token", None)
        self._unknown_id = router.encoder.tokenizer.token_to_id(unknown) if unknown else None

    @property
    def takes_feedback(self) -> bool:
        return self.feedback_file is not None

    def header(self) -> str:
        """What is loaded."""
        settings = self.router.settings
        base = f"fine-tuned from {settings.base_model}, " if settings.base_model else ""
        return html_parts.header(
            self.router.model_save_dir.name, f"{base}{self.router.backend}, up to {settings.max_length} tokens"
        )

    def presets(self) -> dict[str, float]:
        """What the targets in the checkpoint are called, and their thresholds; the page's own comes first."""
        named = {"as started": self.threshold, **self.router.settings.thresholds}
        named = {name.replace("_percent", "%").replace("_", " "): value for name, value in named.items()}
        return {f"{name} ({value:.2f})": value for name, value in named.items()}

    def decide(self, prompt: str) -> Decision | None:
        """The decision at the page's own threshold; None for a blank prompt."""
        return self.router.decide([prompt], self.threshold)[0] if prompt.strip() else None

    def card(self, prompt: str, decision: Decision | None, threshold: float, prices: Prices) -> str:
        if decision is None:
            return html_parts.empty_card()
        label = label_of(decision.router_score, threshold)
        shown = replace(decision, label=label, threshold=threshold)
        cost, most = prices.per_thousand(label == SUPERIOR), prices.per_thousand(1)
        money = f"A thousand such prompts: {dollars(cost)}"
        money += f" instead of {dollars(most)}." if label == INFERIOR else "."
        return html_parts.decision_card(shown, money, self.notes(prompt, decision))

    def notes(self, prompt: str, decision: Decision) -> list[str]:
        """What should make one doubt the score."""
        notes = []
        if decision.truncated:
            notes.append(
                f"This prompt has {decision.characters_received:,} characters and was cut: only its beginning and its "
                f"end, {decision.tokens_scored} tokens together, were scored."
            )
        ids = self.router.encoder.encode([prompt])[0].ids[1:-1]
        if ids and ids.count(self._unknown_id) > len(ids) / 2:
            notes.append(
                "Most of this text is unknown to the model (emoji, or an unread script), so the score says little."
            )
        elif (known := self.labelled.known_share(prompt)) < FEW_KNOWN_WORDS:
            notes.append(
                f"Only {known:.0%} of these words occur in the labelled prompts. The router has hardly seen this "
                "language or subject, so the score says little."
            )
        return notes

    def why(self, prompt: str) -> tuple[str, str]:
        """The words in colour, and the nearest labelled prompts."""
        if not prompt.strip():
            return html_parts.message(EXPLAIN_HINT), ""
        near = html_parts.neighbours_html(self.labelled.nearest(prompt)) if self.labelled.prompts else ""
        return html_parts.words_html(word_effects(self.router, prompt)), near

    def tradeoff(self, threshold: float, prices: Prices) -> str:
        """What the threshold means on the validation prompts: figures and curve."""
        most = prices.per_thousand(1)
        if self.validation is None:
            between = f"between {dollars(prices.per_thousand(0))} and {dollars(most)} per 1,000 prompts"
            text = f"This checkpoint has no {VALIDATION_FILE}, so a threshold's effect can't be shown: {between}."
            return html_parts.message(text)
        share, quality = self.validation.share(threshold), self.validation.quality(threshold)
        cost = prices.per_thousand(share)
        saved = f"{1 - cost / most:.0%} less than {dollars(most)}" if most else ""
        stats = [
            (f"{share:.0%}", "sent to superior", f"of {len(self.validation.scores):,} validation prompts"),
            (
                f"{quality.value:.1%}",
                "quality kept",
                f"95% interval {quality.low:.1%} to {quality.high:.1%}; random: {self.validation.at_random(share):.1%}",
            ),
            (dollars(cost), "per 1,000 prompts", saved),
        ]
        chart = html_parts.curve_svg(self.validation.curve, share, quality.value)
        return html_parts.stats_html(stats) + chart + html_parts.message(QUALITY_NOTE)

    def score_file(self, path: Path, report: Callable[[float, str], None] = lambda *_: None) -> ScoredFile:
        """Score every prompt of a file; `report` is told the share that is done, 0..1."""
        prompts = [str(row["prompt"]) for row in read_prompts(path)]
        rows = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        if not rows:
            raise InputError(f"{path.name} holds no prompt")
        scores = np.full(len(prompts), np.nan)
        for start in range(0, len(rows), PROMPTS_PER_STEP):
            report(start / len(rows), f"{start:,} of {len(rows):,} prompts scored")
            step = rows[start : start + PROMPTS_PER_STEP]
            scores[step] = self.router.score([prompts[i] for i in step])
        return ScoredFile(path, scores)

    def file_summary(self, scored: ScoredFile, threshold: float, prices: Prices) -> str:
        """What the threshold does to a file: figures and histogram."""
        scores = scored.of_prompts
        share = float((scores >= threshold).mean())
        cost, most = prices.per_thousand(share), prices.per_thousand(1)
        thousands = len(scores) / 1000
        blank = len(scored.scores) - len(scores)
        stats = [
            (f"{len(scores):,}", "prompts scored", f"{blank:,} blank, left out" if blank else ""),
            (f"{share:.0%}", "sent to superior", f"{int((scores >= threshold).sum()):,} prompts"),
            (dollars(cost * thousands), "for this file", f"all superior: {dollars(most * thousands)}"),
        ]
        return html_parts.stats_html(stats) + html_parts.histogram_svg(scores, threshold)

    def write_scored(self, scored: ScoredFile, threshold: float) -> Path:
        """The file again, each row with `router_probability` and `route` (inferior or superior) at this threshold."""
        rows = read_prompts(scored.path)
        for row, score in zip(rows, scored.scores, strict=True):
            blank = np.isnan(score)
            row["router_probability"] = None if blank else round(float(score), 6)
            row["route"] = None if blank else html_parts.NAMES[label_of(score, threshold)]
        folder = Path(tempfile.mkdtemp(dir=scored.path.parent))  # so that nobody else's download has this name
        if scored.path.suffix.lower() != ".csv":
            path = folder / f"{scored.path.stem}-scored.jsonl"
            write_rows(path, rows)
            return path
        path = folder / f"{scored.path.stem}-scored.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return path

    def give_feedback(self, prompt: str, decision: Decision, threshold: float, right: bool) -> str:
        """Write what the user says about a route as a labelled prompt, and say so.

        A prompt has one row: a second opinion takes the first one's place, since stage 3 stops at contradictions.
        """
        routed = label_of(decision.router_score, threshold)
        label = routed if right else ({INFERIOR, SUPERIOR} - {routed}).pop()
        row = LabelledPrompt(
            prompt=prompt,
            label=label,
            source="router_page",
            labelled_by="human",
            labelled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._writing:
            rows = list(read_rows(self.feedback_file)) if self.feedback_file.exists() else []
            others = [old for old in rows if normalise_prompt(old.prompt) != normalise_prompt(prompt)]
            if len(others) < len(rows):
                write_rows(self.feedback_file, [*others, row])
            else:
                self.feedback_file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.feedback_file, "ab") as file:
                    file.write(encode_row(row))
        number = f"row {len(others) + 1:,} of {self.feedback_file}"
        return f"Noted as {html_parts.NAMES[label]}: {number}, which stage 3 reads."


def dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}"


def read_prompts(path: Path) -> list[dict]:
    """The rows of a JSONL, CSV or text file; each has a `prompt`.

    Raises:
        InputError: names the file, and the line where there is one.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                csv.field_size_limit(2**31 - 1)
                rows = list(csv.DictReader(file, restval=""))
                if rows and "prompt" not in rows[0]:
                    raise InputError(f"{path.name} has no column named prompt, but {', '.join(map(str, rows[0]))}")
                return [{str(name): value for name, value in row.items()} for row in rows]
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8; convert it") from error
    except csv.Error as error:
        raise InputError(f"{path.name} is not CSV: {error}") from error
    if path.suffix.lower() == ".txt":
        return [{"prompt": line.rstrip("\r")} for line in lines if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path.name}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(rows[-1], dict) or not isinstance(rows[-1].get("prompt"), str):
                raise InputError(f"{path.name}, line {number}: no text named prompt")
    return rows
