"""From a prompt to its label: the request, and what counts as an answer. Nothing else ever becomes a label.

A labelling prompt may ask for two qualities (how likely either model's answer is good) or for one of the two labels.
The answer is read from what the model says after its thinking: a JSON object, or plain text in a few forms.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from create_dataset.openai_client import AnswerMissing, ChatClient, Choice
from create_dataset.pricing import Budget, Usage
from router_data import LABELS, SUPERIOR, label_of, probability_from_gain

Found = TypeVar("Found")

TOP_LOGPROBS = 10
LABEL_PREFIX = "ROUTE_TO_"  # what both labels begin with: the token behind it decides
QUALITIES = ("inferior_quality", "superior_quality")
TRUNCATED = {"length", "max_tokens", "model_length", "max_output_tokens"}
FILTERED = {"content_filter", "content_filtered", "safety", "recitation", "prohibited_content", "blocked"}

# Ends of the thinking that some models write before their answer
THINKING_END = re.compile(
    r"</(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)>|\[/THINK\]|◁/think▷|"
    r"<\|(?:end_of_thought|END_THINKING|/think)\|>|<\|channel\|>\s*final\b.*?<\|message\|>",
    re.IGNORECASE | re.DOTALL,
)
THINKING_START = re.compile(
    r"(?:<(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)>|\[THINK\]|◁think▷|"
    r"<\|(?:begin_of_thought|START_THINKING|think)\|>|<\|channel\|>\s*(?:analysis|commentary)\b)",
    re.IGNORECASE,
)
SPECIAL_TOKENS = r"(?:<\|[^|<>]*\|>|</s>|\s)*"  # a text may end in them
LABEL = r"ROUTE_TO_(?:INFERIOR|SUPERIOR)"
# A line that is an answer: the label, perhaps quoted, starred or introduced, and nothing else
LABEL_LINE = re.compile(
    rf"[\W_]*(?:(?:my|the|final|text|boxed)\b[\W_]*)*(?:(?:answer|label|route|verdict|decision)\b[\W_]*(?:is\b)?)?[\W_]*"
    rf"({LABEL})[\W_]*",
    re.IGNORECASE,
)
LABEL_IN_JSON = re.compile(rf'"label"\s*:\s*"[^"]*?({LABEL})', re.IGNORECASE)
NUMBER = r"(?<![-\d.])(\d*\.?\d+\s*%?)"
QUALITY_IN_TEXT = {
    name: re.compile(name.replace("_", r"[\s_-]*") + r"\W{1,12}?" + NUMBER, re.IGNORECASE) for name in QUALITIES
}
TWO_NUMBERS = re.compile(rf"[\W_]*?{NUMBER}[\s,;/|]+{NUMBER}[\W_]*")
MAX_LINE_CHARACTERS = 200  # of an answer in plain text


def answer_format(name: str, properties: dict) -> dict:
    """The `response_format` of an answer that is a JSON object of these properties, and nothing else."""
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


# No bounds in the schema: several providers refuse them, and the answer is checked anyway
QUALITY_FORMAT = answer_format("qualities", {name: {"type": "number"} for name in QUALITIES})
LABEL_FORMAT = answer_format("route", {"label": {"type": "string", "enum": list(LABELS)}})


@dataclass(frozen=True)
class Answer:
    """What one answer of the model says: both qualities, 0..1, or a label alone.

    Attributes:
        start: where in the answer's text it begins, behind the thinking.
        label_at: where in the text the label stands; None where qualities were given.
    """

    label: str
    inferior_quality: float | None = None
    superior_quality: float | None = None
    start: int = 0
    label_at: int | None = None


@dataclass(frozen=True)
class Label:
    """A label with the soft label and the qualities behind it (None where they can't be told), and how many answers."""

    label: str
    superior_probability: float | None
    votes: int
    inferior_quality: float | None = None
    superior_quality: float | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a row; the number of answers where there were several."""
        row: dict[str, Any] = {"label": self.label, "superior_probability": self.superior_probability}
        if self.inferior_quality is not None:
            row |= {"inferior_quality": self.inferior_quality, "superior_quality": self.superior_quality}
        return row | ({"votes": self.votes} if self.votes > 1 else {})


# --- asking ----------------------------------------------------------------------------------------------------------

# How chat templates write their control tokens: <|im_end|>, <start_of_turn>, [INST]
CONTROL_TOKEN = re.compile(r"<|\[(?=/?[A-Z_]{3,30}\])")


def encode_data(fields: dict[str, str]) -> str:
    """Texts of others as JSON, in which no control token of a chat template is left.

    llama.cpp takes such tokens for real ones wherever they stand, so a prompt could end its message and begin another.
    """
    text = json.dumps(fields, ensure_ascii=False)
    return CONTROL_TOKEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@dataclass(frozen=True)
class LabelRequest:
    """How prompts are put to the labelling model.

    Attributes:
        labelling_prompt: the text of the system message; its own words say which answer it asks for.
        max_output_tokens: the longest answer, in tokens.
        votes: answers per prompt.
    """

    model: str
    labelling_prompt: str
    max_output_tokens: int = 256
    votes: int = 1

    @property
    def asks_for_qualities(self) -> bool:
        """Whether the labelling prompt asks for two qualities, not for a label."""
        return all(name in self.labelling_prompt for name in QUALITIES)

    def body(self, prompt: str, votes: int | None = None) -> dict[str, Any]:
        """The body of a chat completion for one prompt, with `votes` answers (default: all).

        The prompt is data: it stands JSON-encoded in an object, so that it can't pass for a message of its own.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.labelling_prompt},
                {"role": "user", "content": encode_data({"prompt_to_judge": prompt})},
            ],
            "response_format": QUALITY_FORMAT if self.asks_for_qualities else LABEL_FORMAT,
            "reasoning_effort": "none",  # a thinking model takes temperature, gives logprobs and is cheap only so
            "max_completion_tokens": self.max_output_tokens,
            "temperature": 0 if self.votes == 1 else 1,
            "n": self.votes if votes is None else votes,
        }
        if self.votes == 1:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body

    async def label(self, client: ChatClient, budget: Budget, prompt: str, usage: Usage) -> Label:
        """The label of a prompt, of as many answers as there are votes; what they used is added to `usage`.

        Raises:
            StopRun, BudgetReached, AnswerMissing, CutShort: as `ChatClient.ask`; AnswerMissing as `decide`.
        """
        choices: list[Choice] = []
        while len(choices) < self.votes:  # an endpoint without `n` answers one at a time
            reply = await client.ask(self.body(prompt, self.votes - len(choices)), budget, usage)
            choices += reply.choices
            if not reply.choices:
                raise AnswerMissing("empty answer")
        return decide(choices[: self.votes])


# --- reading an answer -----------------------------------------------------------------------------------------------


def parse_answer(choice: Choice) -> Answer:
    """What an answer says, once its thinking is left out.

    Raises:
        AnswerMissing: it names no label and no qualities, or more than one; the message says why.
    """
    if choice.refusal:
        raise AnswerMissing(f"refusal: {choice.refusal[:200]}")
    if choice.error:
        raise AnswerMissing(f"error in place of an answer: {str(choice.error)[:200]}")
    if choice.finish_reason in FILTERED:
        raise AnswerMissing("stopped by the content filter")
    start, text = text_after_thinking(choice.text)
    if not text.strip():
        raise AnswerMissing(
            f"{'no answer behind the thinking' if choice.text.strip() else 'empty answer'}{_cut(choice)}"
        )
    answers = list(_json_answers(text, choice)) or list(_plain_answers(text, choice))
    shown = repr(" ".join(text.split())[:200])
    if not answers:
        raise AnswerMissing(f"answer{_cut(choice) or ' in no known form'}: {shown}")
    if len({(a.label, a.inferior_quality, a.superior_quality) for a in answers}) > 1:
        raise AnswerMissing(f"more than one answer: {shown}")
    answer = answers[-1]
    return replace(answer, start=start, label_at=None if answer.label_at is None else start + answer.label_at)


def _cut(choice: Choice) -> str:
    """Why an answer is not whole; empty where it is."""
    return " cut off at --max_output_tokens or the model's context" if choice.finish_reason in TRUNCATED else ""


def text_after_thinking(text: str) -> tuple[int, str]:
    """What a model says after its thinking, and where in the text that begins; empty where it never stops thinking."""
    start = max((match.end() for match in THINKING_END.finditer(text)), default=0)
    unclosed = THINKING_START.search(text, start)
    return start, text[start : unclosed.start() if unclosed else None]


def json_objects(text: str, read: Callable[[dict], Found | None]) -> Iterator[tuple[int, Found]]:
    """What `read` makes of the JSON objects in a text, with their places; one of which it makes None is searched."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            fields, end = decoder.raw_decode(text, at)
            found = read(fields)
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            yield at, found
        at = text.find("{", at + 1 if found is None else end)


def _json_answers(text: str, choice: Choice) -> Iterator[Answer]:
    """The answers that are JSON objects.

    Of a text that was cut off, only an object at its end counts: it might have gone on to say something else. It may
    lack its bracket, since some models run on in white space behind the last value.
    """
    if choice.finish_reason in TRUNCATED:
        text += "}" if text[-1:].isspace() else ""
        if not text.rstrip("` \n\t").endswith("}"):
            return
    for at, answer in json_objects(text, _answer_of):
        label = LABEL_IN_JSON.search(text, at) if answer.inferior_quality is None else None
        yield replace(answer, label_at=label.start(1) if label else None)


def _answer_of(fields: dict) -> Answer | None:
    """The answer that a JSON object is; None where it is none."""
    by_name = {re.sub(r"[\W_]+", "_", str(name).strip().lower()): value for name, value in fields.items()}
    values = (by_name.get(name, by_name.get(name.removesuffix("_quality"))) for name in QUALITIES)
    if answer := _from_qualities(*map(_quality, values)):
        return answer
    label = fields.get("label")
    match = LABEL_LINE.fullmatch(label[:MAX_LINE_CHARACTERS]) if isinstance(label, str) else None
    return Answer(match[1].upper()) if match else None


def _quality(value: object) -> float | None:
    """A number from 0 to 1, also as a text or in percent; None where it is none."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", value)
        value = float(match[1]) / (100 if match[2] else 1) if match else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _from_qualities(inferior: float | None, superior: float | None) -> Answer | None:
    if inferior is None or superior is None:
        return None
    return Answer(label_of(probability_from_gain(superior - inferior)), inferior, superior)


def _plain_answers(text: str, choice: Choice) -> Iterator[Answer]:
    """The answers in a text without JSON: the qualities by name, two numbers alone, or lines that are a label."""
    if choice.finish_reason in TRUNCATED:
        return
    named = [QUALITY_IN_TEXT[name].findall(text) for name in QUALITIES]
    if all(named):
        answers = (_from_qualities(*map(_quality, pair)) for pair in itertools.product(*map(set, named)))
        yield from filter(None, answers)
        return
    text = re.sub(SPECIAL_TOKENS + r"\Z", "", text)
    if len(text) < MAX_LINE_CHARACTERS and (numbers := TWO_NUMBERS.fullmatch(text)):
        answer = _from_qualities(_quality(numbers[1]), _quality(numbers[2]))
        if answer:
            yield answer
    at = 0
    for line in text.splitlines(keepends=True):
        if match := LABEL_LINE.fullmatch(line[:MAX_LINE_CHARACTERS]):
            yield Answer(match[1].upper(), label_at=at + match.start(1))
        at += len(line)


# --- soft labels -----------------------------------------------------------------------------------------------------


def probability_from_logprobs(choice: Choice, answer: Answer) -> float | None:
    """The share of ROUTE_TO_SUPERIOR in the probability of the two labels, at the token where they part.

    The tokens must end in the answer's own text: those of the thinking say nothing. None where they don't, where there
    are none, or where they say nothing about the token that decides.
    """
    tokens = [str(token.get("token") or "") for token in choice.logprobs]
    text, own = "".join(tokens), choice.text[answer.start :].strip()
    own = re.sub(SPECIAL_TOKENS + r"\Z", "", own)
    at = text.rfind(own) if own else -1
    if at < 0 or answer.label_at is None or not re.fullmatch(SPECIAL_TOKENS, text[at + len(own) :]):
        return None
    label_at = at + answer.label_at - choice.text.index(own, answer.start)
    begin = 0
    for token, details in zip(tokens, choice.logprobs, strict=True):
        begin, before = begin + len(token), text[:begin]
        if begin > label_at + len(LABEL_PREFIX):
            return _share_of_superior(details.get("top_logprobs"), before, label_at)
    return None


def _share_of_superior(options: object, before: str, label_at: int) -> float | None:
    """The share of SUPERIOR among a token's options; `before` is the text that precedes it."""
    mass = dict.fromkeys(LABELS, 0.0)
    for option in options if isinstance(options, list) else ():
        if not isinstance(option, dict):
            continue
        candidate = (before + str(option.get("token") or ""))[label_at:].upper()
        for label in LABELS:
            if len(candidate) > len(LABEL_PREFIX) and (label.startswith(candidate) or candidate.startswith(label)):
                mass[label] += _probability(option.get("logprob"))
    total = sum(mass.values())
    return mass[SUPERIOR] / total if total > 0 else None


def _probability(logprob: object) -> float:
    """The probability of a token; null stands for minus infinity, which JSON can't hold."""
    if not isinstance(logprob, int | float) or isinstance(logprob, bool) or math.isnan(logprob):
        return 0.0
    return math.exp(min(0.0, logprob))


def decide(choices: list[Choice]) -> Label:
    """The label that the answers give: the mean qualities, else log probabilities for one answer, shares for several.

    Answers that can't be read don't vote; more than half must be readable, and of the same form.

    Raises:
        AnswerMissing: too few of them are.
    """
    answers: list[Answer] = []
    reasons: list[AnswerMissing] = []
    for choice in choices:
        try:
            answers.append(parse_answer(choice))
        except AnswerMissing as error:
            reasons.append(error)
    if len(answers) <= len(choices) / 2:
        raise AnswerMissing(str(reasons[0]) if reasons else "empty answer", choices[0].text[:500] if choices else None)
    rated = [answer for answer in answers if answer.inferior_quality is not None]
    if len(rated) > len(choices) / 2:
        return _mean_of_qualities(rated)
    if len(choices) > 1:
        share = sum(answer.label == SUPERIOR for answer in answers) / len(answers)
        return Label(label_of(share), round(share, 6), len(answers))
    probability = probability_from_logprobs(choices[0], answers[0])
    if probability is not None:
        probability = round(probability, 6)
        if label_of(probability) != answers[0].label:
            probability = None  # sampled against the odds: the label that was said counts
    return Label(answers[0].label, probability, 1)


def _mean_of_qualities(answers: list[Answer]) -> Label:
    inferior, superior = (
        round(sum(getattr(answer, name) for answer in answers) / len(answers), 6) for name in QUALITIES
    )
    probability = round(probability_from_gain(superior - inferior), 6)
    return Label(label_of(probability), probability, len(answers), inferior, superior)
