"""What a provider's error means, in whatever shape it comes: the body's `error`, a list, `detail`, text, or a 200.

The shapes are those of docs/providers.md.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from create_dataset.api_settings import without_key

# What an endpoint may refuse and a label can do without; `max_completion_tokens` then goes as `max_tokens`
OPTIONAL_PARAMETERS = (
    "reasoning_effort", "temperature", "top_logprobs", "logprobs", "response_format", "n", "max_completion_tokens"
)  # fmt: skip
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
RETIRED_CODES = {"model_not_found", "model_deprecated", "model_retired", "deploymentnotfound"}
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
CODE_KEYS = ("code", "type", "status", "status_code", "http_status")
NAME_KEYS = ("param", "parameter", "field", "loc")
TEXT_KEYS = (
    "error", "message", "msg", "status_msg", "detail", "details", "errors", "error_message", "description", "reason",
    "metadata", "raw", "base_resp",
)  # fmt: skip
STATUS_OF_CODE = {
    "invalid_argument": 400, "failed_precondition": 400, "unauthenticated": 401, "permission_denied": 403,
    "not_found": 404, "resource_exhausted": 429, "rate_limit_exceeded": 429, "internal": 500, "unavailable": 503,
    "deadline_exceeded": 504, "invalid_api_key": 401,
} | dict.fromkeys(QUOTA_CODES, 402) | dict.fromkeys(RETIRED_CODES, 404)  # fmt: skip
# For an error inside a 200 that names no status: what its words mean
STATUS_OF_WORDS = {
    402: r"insufficient (?:credit|balance|fund|quota)|credit balance|payment required|out of credits",
    401: r"(?:invalid|incorrect|missing) (?:api )?key|unauthori[sz]ed|authentication",
    429: r"rate.?limit|too many requests|throttl",
    404: r"(?:unexpected|unknown|no such) (?:endpoint|route|path)|(?:page|route) not found",
    400: r"context (?:length|window|size)|too long|not supported|unsupported|unknown (?:name|parameter|field)|invalid",
}
PASSING = 502  # what any other error inside a 200 means: try again
FILTER_WORDS = re.compile(
    r"content.?filter|content management policy|content policy|safety (?:system|policy)|flagged|moderation|"
    r"data.?inspection",
    re.IGNORECASE,
)
WAIT_IN_TEXT = re.compile(
    r"(?:retry.?delay|retry.?after|try again in|retry in)[\"':\s]*((?:[\d.]+\s*(?:ms|s|m|h|d)[a-z]*\s*)+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ProviderError:
    """An error as a provider tells it.

    Attributes:
        status: the HTTP status, or what a body under status 200 says.
        codes: words that classify it, in lower case.
        named: fields of the request that it names as wrong.
        message: its own text on one line, without the key; empty where there is none.
        wait: seconds that its text asks to wait; None where it doesn't.
    """

    status: int
    codes: frozenset[str]
    named: tuple[str, ...]
    message: str
    wait: float | None = None

    def __str__(self) -> str:
        names = ".".join(name for name in self.named if name not in self.message)
        return f"HTTP {self.status}: {names + ': ' if names else ''}{self.message}"[:300].rstrip(" :")

    @property
    def is_passing(self) -> bool:
        """Whether the same request may pass later."""
        return self.status >= 500 or self.status in (408, 409, 425, 429)

    @property
    def is_filter(self) -> bool:
        """Whether a content filter stopped this prompt: that says nothing about the others."""
        return any("content_filter" in code for code in self.codes) or bool(FILTER_WORDS.search(self.message))

    @property
    def is_out_of_quota(self) -> bool:
        """Whether the account has no money left, which no waiting changes."""
        return self.status == 402 or bool(self.codes & QUOTA_CODES)

    @property
    def is_model_gone(self) -> bool:
        """Whether the model is retired or unknown."""
        return bool(self.codes & RETIRED_CODES)

    def refused_parameter(self, body: dict) -> str | None:
        """The parameter of the request that a 400 or 422 complains about, if it can be done without."""
        if self.status not in (400, 422) or any("context_length" in code for code in self.codes):
            return None
        candidates = [name for name in OPTIONAL_PARAMETERS if name in body]
        if named := next((name for name in self.named if name in candidates), None):
            return named
        return next((name for name in candidates if _mentions(self.message, name)), None)


def _mentions(message: str, parameter: str) -> bool:
    if len(parameter) > 1:
        return bool(re.search(rf"(?<!\w){parameter}(?!\w)", message))
    return bool(re.search(rf"(?:['\"`]|(?:field|parameter|argument|name):? ){parameter}(?!\w)", message))


def read_error(status: int, text: str) -> ProviderError:
    """The error that came with an HTTP status of 400 or more."""
    try:
        return _describe(json.loads(text), status)
    except (ValueError, RecursionError):
        return _describe(text, status)


def error_inside(body: object) -> ProviderError | None:
    """The error that a body under status 200 is; None where it is a completion, or nothing that can be read."""
    body = body[0] if isinstance(body, list) and body else body
    if not isinstance(body, dict) or body.get("choices") or ("choices" in body and not body.get("error")):
        return None
    error = _describe(body, None)
    return error if error.message or error.codes else None


def error_in_choice(error: object) -> ProviderError:
    """The error that one choice of a completion holds in place of an answer."""
    return _describe(error, None)


def _describe(body: object, status: int | None) -> ProviderError:
    found: dict[str, list] = {"code": [], "name": [], "text": []}
    for kind, value in _walk(body):
        found[kind].append(value)
    words = frozenset(str(code).lower() for code in found["code"])
    text = "; ".join(dict.fromkeys(found["text"]))
    message = without_key(re.sub(r"<[^>]*>", " ", text) if text.startswith("<") else text)  # a gateway's page of HTML
    if status is None:
        numbers = [int(code) for code in words if re.fullmatch(r"[45]\d\d", code)]
        known = [STATUS_OF_CODE[code] for code in words if code in STATUS_OF_CODE]
        by_words = (number for number, words in STATUS_OF_WORDS.items() if re.search(words, message, re.IGNORECASE))
        status = next(iter([*numbers, *known]), None) or next(by_words, PASSING)
    wait = WAIT_IN_TEXT.search(body if isinstance(body, str) else json.dumps(body))
    return ProviderError(status, words, tuple(found["name"]), message, seconds_of(wait[1]) if wait else None)


def _walk(node: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The codes, the names of fields and the texts in an error's body, the outer ones first."""
    if depth > 6:
        return
    if isinstance(node, str) and node.strip():
        yield "text", node.strip()
    elif isinstance(node, list):
        for item in node:
            yield from _walk(item, depth + 1)
    elif isinstance(node, dict):
        yield from (("code", node[key]) for key in CODE_KEYS if isinstance(node.get(key), str | int) and node[key])
        yield from (("name", name) for key in NAME_KEYS for name in _names(node.get(key)))
        for key in TEXT_KEYS:
            yield from _walk(node.get(key), depth + 1)


def _names(value: object) -> Iterator[str]:
    """The parts of the path to a field: "response_format.type", ["body", "logprobs"]."""
    parts: Iterable = value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, str):
            yield from filter(None, re.split(r"[.\[\]/]", part))


def substitute(parameter: str, value: Any, message: str) -> Any:
    """What to send for a value that a model refused, if its message names what it takes; None to leave it out."""
    if parameter == "reasoning_effort":
        efforts = [effort for effort in EFFORTS if re.search(rf"['\"`]{effort}['\"`]", message)]
        if not efforts:
            efforts = [effort for effort in EFFORTS if re.search(rf"\b{effort}\b", message)]
        return next((effort for effort in efforts if EFFORTS.index(effort) > EFFORTS.index(value)), None)
    if parameter == "top_logprobs":
        return max((number for number in map(int, re.findall(r"\b\d+\b", message)) if 1 < number < value), default=None)
    if parameter == "response_format" and value.get("type") == "json_schema" and "json_object" in message:
        return {"type": "json_object"}
    return None


def seconds_of(text: str | None) -> float | None:
    """Seconds of a duration: "1s", "6m0s", "120ms", or a bare number of seconds; None where it is none."""
    try:
        return float(text or "")
    except ValueError:
        units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
        parts = re.findall(r"([\d.]+)\s*(ms|s|m|h|d)", text or "")
        return sum(float(number) * units[unit] for number, unit in parts) if parts else None
