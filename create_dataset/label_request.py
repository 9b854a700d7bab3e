"""From a prompt to its label: the request, and what counts as an answer. Nothing else ever becomes a label."""

import json
import math
import re
from dataclasses import dataclass

from create_dataset.openai_client import Choice, Endpoint, NoAnswer
from create_dataset.pricing import Budget
from router_data import LABELS, SUPERIOR, label_of

TOP_LOGPROBS = 10
COMMON_START = "ROUTE_TO_"  # what both labels begin with: the token behind it decides
ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "route",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": list(LABELS)}},
            "required": ["label"],
            "additionalProperties": False,
        },
    },
}
# An answer in plain text: the label, perhaps quoted, starred or introduced, and nothing else.
PLAIN_ANSWER = re.compile(
    r"[\W_]*(?:(?:the\s+)?(?:answer|label|route)\b[\W_]*(?:is\b)?)?[\W_]*(ROUTE_TO_(?:INFERIOR|SUPERIOR))[\W_]*", re.I
)
# A schema answer that was cut off in the white space behind its label.
CUT_AFTER_LABEL = re.compile(r'\s*\{\s*"label"\s*:\s*"(ROUTE_TO_(?:INFERIOR|SUPERIOR))"\s*\}?\s*')


@dataclass
class Label:
    """A label, how sure the labeller was (None where it can't be told), and the number of answers it rests on."""

    label: str
    superior_probability: float | None
    votes: int


def label_request(model: str, labelling_prompt: str, prompt: str, max_output_tokens: int, votes: int = 1) -> dict:
    """The body of a chat completion that asks for the label of a prompt.

    The prompt is data: it stands JSON-encoded in an object, so that it can't pass for a message of its own.
    """
    request = {
        "model": model,
        "messages": [
            {"role": "system", "content": labelling_prompt},
            {"role": "user", "content": json.dumps({"prompt_to_judge": prompt}, ensure_ascii=False)},
        ],
        "response_format": ANSWER_FORMAT,
        "reasoning_effort": "none",  # a thinking model takes temperature and gives logprobs only so, and costs less
        "max_completion_tokens": max_output_tokens,
        "temperature": 0 if votes == 1 else 1,
        "n": votes,
    }
    if votes == 1:
        request |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return request


def parse_label(choice: Choice) -> str:
    """The label in an answer.

    Raises:
        NoAnswer: there is none, or more than one; the message says why.
    """
    if choice.refusal:
        raise NoAnswer(f"refusal: {choice.refusal[:200]}")
    if choice.finish_reason == "content_filter":
        raise NoAnswer("stopped by the content filter")
    text = re.sub(r"^\s*```(?:json)?|```\s*$", "", choice.text.strip())
    if choice.finish_reason == "length":
        if match := CUT_AFTER_LABEL.fullmatch(text):
            return match[1]
        raise NoAnswer(f"answer cut off at --max_output_tokens or the model's context: {text.strip()[:80]!r}")
    if not text.strip():
        raise NoAnswer("empty answer")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    if isinstance(answer, dict):
        answer = answer.get("label")
    match = PLAIN_ANSWER.fullmatch(answer) if isinstance(answer, str) else None
    if not match:
        raise NoAnswer(f"answer outside the two labels: {text.strip()[:200]!r}")
    return match[1].upper()


def probability_from_logprobs(choice: Choice) -> float | None:
    """The share of ROUTE_TO_SUPERIOR in the probability of the two labels, at the token where they part.

    None where the answer has no log probabilities or none of the token that decides.
    """
    text, start = "", None
    for token in choice.logprobs:
        before, text = text, text + str(token.get("token") or "")
        if start is None:
            found = text.find(COMMON_START)
            start = found if found >= 0 else None
        if start is None or len(text) <= start + len(COMMON_START):
            continue
        mass = dict.fromkeys(LABELS, 0.0)
        for option in token.get("top_logprobs") or []:
            candidate = (before + str(option.get("token") or ""))[start:]
            for label in LABELS:
                if len(candidate) > len(COMMON_START) and (label.startswith(candidate) or candidate.startswith(label)):
                    mass[label] += math.exp(min(0.0, option.get("logprob", -math.inf)))
        total = sum(mass.values())
        return mass[SUPERIOR] / total if total > 0 else None
    return None


def decide(choices: list[Choice]) -> Label:
    """The label that the answers give: by log probabilities for one, by the share of votes for several.

    Answers without a label don't vote; more than half must have one.

    Raises:
        NoAnswer: too few of them name a label.
    """
    labels, reasons = [], []
    for choice in choices:
        try:
            labels.append(parse_label(choice))
        except NoAnswer as error:
            reasons.append(error)
    if len(labels) <= len(choices) / 2:
        raise reasons[0] if reasons else NoAnswer("empty answer")
    if len(choices) > 1:
        share = labels.count(SUPERIOR) / len(labels)
        return Label(label_of(share), round(share, 6), len(labels))
    probability = probability_from_logprobs(choices[0])
    if probability is not None:
        probability = round(probability, 6)
        if label_of(probability) != labels[0]:
            probability = None  # the answer was drawn against the odds: keep what was said
    return Label(labels[0], probability, 1)


async def ask_label(
    endpoint: Endpoint,
    budget: Budget,
    model: str,
    labelling_prompt: str,
    prompt: str,
    max_output_tokens: int,
    votes: int,
) -> tuple[list[Choice], int, int]:
    """The model's answers, as many as votes were asked for, and the input and output tokens they took."""
    choices, used_input, used_output = [], 0, 0
    while len(choices) < votes:  # an endpoint without `n` answers one at a time
        request = label_request(model, labelling_prompt, prompt, max_output_tokens, votes)
        request["n"] = votes - len(choices)
        reply = await endpoint.ask(request, budget)
        used_input += reply.input_tokens
        used_output += reply.output_tokens
        choices += reply.choices
        if not reply.choices:
            raise NoAnswer("empty answer")
    return choices[:votes], used_input, used_output
