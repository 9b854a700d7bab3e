"""Requests to an OpenAI-compatible endpoint: within limits and a budget, retried where that can help.

Kept libraries do the waiting: `openai` the protocol (its own retries are off: they can't see the other requests),
`tenacity` the retries (over `backoff`, which is archived), `aiolimiter` the requests and tokens a minute (a leaky
bucket that takes any amount; `asyncio.Semaphore` knows no time, `throttled-py` wants a store for one process).
"""

import argparse
import asyncio
import json
import math
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from create_dataset.api_settings import (
    is_this_machine,
    make_client,
    printable_address,
    proxy_variable,
    without_key,
)
from create_dataset.pricing import Budget, Reservation, Usage, max_usage
from create_dataset.provider_errors import (
    ProviderError,
    error_in_choice,
    error_inside,
    read_error,
    seconds_of,
    substitute,
)
from router_data import InputError, retry_after

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter
    from tenacity import RetryCallState

TRIES = 10
FIRST_WAIT, MAX_WAIT = 1.0, 60.0  # seconds, of the backoff
MAX_PAUSE = 15 * 60.0  # seconds; an endpoint that asks for more is out of quota for now
MAX_REASONS_SAID = 5  # for retries
LOOK_UP_SECONDS = 15.0  # for asking whether the model exists, a courtesy
GATEWAY_TIMEOUTS = {408, 504, 524}  # the model may have answered, so the request may be charged


class StopRun(Exception):
    """The run can't go on; the message says why in one line."""


class AnswerMissing(Exception):
    """This request has no usable answer; the message is the reason, `reply` what the model said instead.

    Neither holds the key: a server may quote it in place of an answer.
    """

    def __init__(self, reason: str, reply: str | None = None) -> None:
        super().__init__(without_key(reason))
        self.reply = reply and without_key(reply)


class CutShort(Exception):
    """A run that ends gave up the tries of this request; it may be asked again."""


class _Retry(Exception):
    """Worth another try; `after` is the wait asked for, in seconds, `limited` whether a rate limit is the reason."""

    def __init__(self, reason: str, after: float | None = None, limited: bool = False) -> None:
        super().__init__(reason)
        self.after, self.limited = after, limited


class _ParameterRefused(Exception):
    """The endpoint refused a parameter of ours; it is left out or replaced from now on."""


@dataclass
class Choice:
    """One answer of the model."""

    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    logprobs: list[dict] = field(default_factory=list)
    error: object = None


@dataclass
class Reply:
    """All answers to one request, and the tokens it used; None where the endpoint doesn't say."""

    choices: list[Choice]
    usage: Usage | None


def parse_reply(body: object) -> Reply:
    """Read a chat completion.

    Raises:
        ValueError: it is not one.
    """
    body = body if isinstance(body, dict) else {"body": body}
    choices = body.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError(f"not a chat completion: {str(body)[:200]}")
    read = list(map(_read_choice, choices))
    return Reply(read, read_usage(body.get("usage"), any(choice.text for choice in read)))


def _read_choice(choice: dict) -> Choice:
    message = next((choice[name] for name in ("message", "delta") if isinstance(choice.get(name), dict)), choice)
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    reason, refusal = str(choice.get("finish_reason") or "").lower(), message.get("refusal")
    return Choice(
        text=_text_of(message.get("content", message.get("text"))),
        finish_reason=reason or None,
        refusal=refusal if isinstance(refusal, str) else None,
        logprobs=[token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else [],
        error=choice.get("error") or message.get("error") or ("ended in an error" if reason == "error" else None),
    )


def _text_of(content: object) -> str:
    """The text of a message's content; of a list of parts, those that are no thinking."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts if _is_answer(part))
    return "".join(text for text in texts if isinstance(text, str))


def _is_answer(part: object) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and "text" in str(part.get("type", "text")))


def read_usage(usage: object, has_text: bool = True) -> Usage | None:
    """The tokens that a completion reports; None where it reports none, or what can't be true.

    Thinking counts as output wherever it is reported: some providers count it in `total_tokens` only, some in
    `reasoning_tokens` beside `completion_tokens`.

    Args:
        has_text: whether there is an answer, which takes a token at least.
    """
    if not isinstance(usage, dict):
        return None
    total = _token_count(usage, "total_tokens")
    prompt = _token_count(usage, "prompt_tokens", "input_tokens")
    answer = _token_count(usage, "completion_tokens", "output_tokens")
    if answer is None and total and prompt is not None:
        answer = total - prompt
    if not prompt or answer is None or answer < has_text:
        return None
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    thinking = _token_count(details if isinstance(details, dict) else usage, "reasoning_tokens") or 0
    answer = max(answer, (total or 0) - prompt)
    return Usage(prompt, answer + (thinking if total is None or thinking > answer else 0))


def _token_count(fields: dict, *names: str) -> int | None:
    for name in names:
        value = _number(fields.get(name))
        if value is not None and value >= 0:
            return int(value)
    return None


def add_request_flags(parser: argparse.ArgumentParser, max_in_flight: int, timeout: float) -> None:
    """The flags about pace and money that `ChatClient.from_flags` and the programs read; with these defaults."""
    # fmt: off
    add = parser.add_argument_group("pace and money").add_argument
    add("--max_in_flight", type=int, default=max_in_flight,
        help="prompts worked on at the same time (default: %(default)s)")
    add("--requests_per_minute", type=float, metavar="N", help="sent in any minute, at most (default: no bound)")
    add("--tokens_per_minute", type=float, metavar="N", help="sent in any minute, at most (default: no bound)")
    add("--timeout", type=float, default=timeout, metavar="SECONDS",
        help="wait for an answer, at most (default: %(default)g)")
    add("--dry_run", action="store_true", help="show rows, tokens, price and time; ask nothing")
    add("--max_usd", type=float, metavar="USD",
        help="stop before the output file has cost more, US dollars (default: no bound)")
    # fmt: on


def check_request_flags(args: argparse.Namespace) -> None:
    """Refuse values of `add_request_flags` that can't work.

    Raises:
        InputError: names the flag.
    """
    if args.max_in_flight < 1:
        raise InputError("--max_in_flight must be at least 1")
    for name in ("requests_per_minute", "tokens_per_minute", "timeout", "max_usd"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be positive")


class ChatClient:
    """An endpoint with its limits; any number of tasks may `ask` it at once.

    Attributes:
        address: its URL, fit for printing.
        substitutes: by model, the parameters it refused: the value that is sent instead, None where it is left out.
        sending: tasks with a request under way.
        stopping: set when a run ends: nothing is tried again.
        say: is told what the user should know, in one line.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None, timeout: float = 60.0
    ) -> None:
        """`timeout`: seconds for one whole request.

        Raises:
            InputError: the key, the address or a proxy can't be used.
        """
        self.client = make_client(timeout, max_retries=0, is_async=True)
        self.address = printable_address(str(self.client.base_url)).rstrip("/")
        self.timeout = timeout
        self.say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
        self.substitutes: dict[str, dict[str, Any]] = {}
        self.sending: set[asyncio.Task | None] = set()
        self.stopping = False
        self._request_limit, self._token_limit = _limiter(requests_per_minute), _limiter(tokens_per_minute)
        self._paused_until = 0.0
        self._has_answered = False  # until then an unreadable answer may mean a wrong address
        self._retried: set[str] = set()  # reasons that were said

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> "ChatClient":
        """The client that the flags of `add_request_flags` describe."""
        return cls(args.requests_per_minute, args.tokens_per_minute, args.timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def check_model(self, model: str) -> None:
        """Ask whether the model is about to be shut down; a courtesy, so only a wrong key or address stops a run.

        Raises:
            StopRun: wrong key, a model that was shut down, or the endpoint can't be reached.
        """
        import openai

        try:
            found = await self.client.models.retrieve(model, timeout=min(self.timeout, LOOK_UP_SECONDS))
        except openai.APITimeoutError:
            return
        except openai.APIConnectionError as error:
            raise StopRun(self._unreachable(error)) from error
        except openai.APIStatusError as error:
            told = read_error(error.status_code, error.response.text)
            if told.status == 401 and "invalid_api_key" in told.codes:
                raise StopRun(self.refusal(told, model)) from error
            return  # a key without this right can still label, and not every endpoint has this route
        except (ValueError, RecursionError, openai.OpenAIError):
            return
        ends = str(getattr(found, "shutdown_date", None) or "")[:10]
        if re.fullmatch(r"\d{4}-\d\d-\d\d", ends):
            if date.fromisoformat(ends) <= datetime.now(UTC).date():
                raise StopRun(f"the model {model} was shut down on {ends}; choose another with --model")
            self.say(f"note: {model} will be shut down on {ends}")

    async def ask(self, request: dict, budget: Budget, usage: Usage) -> Reply:
        """Send a chat completion, again where that can help.

        Args:
            request: the body; `max_completion_tokens` is required, parameters the model refused are left out.
            budget: bounds and counts the cost.
            usage: what all tries used is added to it, upper bounds where the endpoint doesn't say.

        Raises:
            StopRun, BudgetReached: the run must end. AnswerMissing: this request can't be answered. CutShort: the
                run ended meanwhile.
        """
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _Retry) and not self.stopping),
            stop=stop_after_attempt(TRIES),
            wait=_seconds_to_wait,
            before_sleep=self._say_retry,
            reraise=True,
        )
        try:
            return await retrying(self._ask_once, request, budget, usage)
        except _Retry as error:
            if self.stopping:
                raise CutShort from error
            if error.limited:
                raise StopRun(f"the endpoint still limits the rate after {TRIES} tries ({error})") from error
            raise AnswerMissing(f"{error}, after {retrying.statistics['attempt_number']} tries") from error

    async def _ask_once(self, request: dict, budget: Budget, usage: Usage) -> Reply:
        """One try, repeated at once where the endpoint refuses a parameter."""
        while True:
            body = self.supported_parameters(request)
            bound = max_usage(body, request["max_completion_tokens"])
            await self._acquire_rate_limit(bound.input_tokens / 4 + bound.output_tokens)
            async with budget.reserve(bound) as reservation:
                task = asyncio.current_task()
                self.sending.add(task)
                try:
                    return await self._send(body, reservation)
                except _ParameterRefused:
                    continue
                finally:
                    self.sending.discard(task)
                    usage += reservation.used

    async def _send(self, body: dict, reservation: Reservation) -> Reply:
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self.timeout):  # the client's own bounds each read, not the whole
                # `chat.completions.create` walks through the body's types first, a third of all the work
                answer = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            return self._read(answer, body, reservation)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _Retry(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            if "connect" in type(error.__cause__).__name__.lower():
                reservation.used = Usage()  # it never left
            raise _Retry(f"connection failed ({_cause(error)})") from error
        except openai.APIStatusError as error:
            if error.status_code not in GATEWAY_TIMEOUTS:
                reservation.used = Usage()
            told = read_error(error.status_code, error.response.text)
            raise self._classify_error(told, body, retry_after(error.response.headers)) from error

    def _read(self, answer: Any, body: dict, reservation: Reservation) -> Reply:
        """The reply under status 200, or what the error inside it means; sets what was used."""
        try:
            content = json.loads(answer.text)
            if error := error_inside(content):
                reservation.used = (
                    read_usage(content.get("usage"), False) or Usage() if isinstance(content, dict) else Usage()
                )
                raise self._classify_error(error, body, retry_after(answer.headers))
            reply = parse_reply(content)
        except (ValueError, RecursionError) as error:
            if answer.text.lstrip().startswith("<") and not self._has_answered:
                raise StopRun(
                    f"{self.address} answers with a web page, not with JSON; {self._mend_address()}"
                ) from error
            raise _Retry(f"broken answer ({without_key(str(error))[:200]})") from error
        reservation.used = reply.usage or reservation.bound
        self._apply_rate_limit_headers(answer.headers, reservation.used)
        errors = [choice.error for choice in reply.choices if choice.error]
        if errors and len(errors) == len(reply.choices):
            raise self._classify_error(error_in_choice(errors[0]), body, retry_after(answer.headers))
        self._has_answered = True
        return reply

    def _classify_error(self, error: ProviderError, body: dict, after: float | None) -> Exception:
        """What an error means: stop, try again, do without a parameter, or give up this request."""
        after = error.wait if after is None else after
        if error.is_filter:
            return AnswerMissing(f"stopped by the content filter ({error})")
        if error.is_out_of_quota or error.is_model_gone or error.status in (401, 403, 404, 405, 410):
            return StopRun(self.refusal(error, body["model"]))
        if error.status == 429:
            if after is not None and after > MAX_PAUSE:
                return StopRun(f"the endpoint asks to wait {after / 60:.0f} minutes; resume later")
            self._pause(after if after is not None else FIRST_WAIT)
            return _Retry(str(error), after, limited=True)
        if error.is_passing:
            return _Retry(str(error), after)
        if parameter := error.refused_parameter(body):
            self.mark_unsupported(body["model"], parameter, body[parameter], error.message)
            return _ParameterRefused(parameter)
        return AnswerMissing(str(error))

    def mark_unsupported(self, model: str, parameter: str, value: Any, reason: str) -> None:
        """Do without a value that a model refused from now on, and say so once.

        What the reason names instead is sent from then on: the least effort, the most log probabilities.
        """
        substitutes = self.substitutes.setdefault(model, {})
        if parameter in substitutes and substitutes[parameter] != value:
            return  # another request was told before
        substitutes[parameter] = substitute(parameter, value, reason)
        told = f" ({reason[:200]})" if reason else ""
        if substitutes[parameter] is not None:
            self.say(f"note: {model} refuses {parameter} {value!r}{told}: sending {substitutes[parameter]!r}")
            return
        instead = "; sending max_tokens" if parameter == "max_completion_tokens" else ""
        self.say(f"note: {model} refuses '{parameter}'{told}: left out from now on{instead}")

    def supported_parameters(self, request: dict) -> dict:
        """The body with what its model takes: refused parameters left out or replaced."""
        substitutes = self.substitutes.get(request["model"], {})
        body = {name: substitutes.get(name, value) for name, value in request.items()}
        body = {name: value for name, value in body.items() if value is not None}
        if "max_completion_tokens" not in body:
            body["max_tokens"] = request["max_completion_tokens"]
        if body.get("n") == 1:
            del body["n"]
        if "logprobs" not in body:
            body.pop("top_logprobs", None)
        return body

    def refusal(self, error: ProviderError, model: str) -> str:
        """What an error that no prompt is to blame for means and what to do, in one line."""
        told = f" ({error})" if error.message else ""
        if error.is_out_of_quota:
            return f"the quota of this key is used up, or its credit{told}; add credit, then resume"
        if error.status == 401:
            return f"the endpoint {self.address} refuses the key{told}; check OPENAI_API_KEY"
        if error.status == 403:
            return f"this key may not use {model}{told}"
        gone = f"no model {model} at {self.address}, or it is retired{told}"
        return f"{gone}; choose another with --model, or {self._mend_address()}"

    def _mend_address(self) -> str:
        if re.search(r"/v\d", self.address):
            return "check OPENAI_BASE_URL"
        return f"check OPENAI_BASE_URL: should it be {self.address}/v1?"

    def _unreachable(self, error: Exception) -> str:
        proxy = None if is_this_machine(self.address) else proxy_variable()
        way, check = (f" through the proxy of {proxy}", f" and {proxy}") if proxy else ("", "")
        return f"cannot reach {self.address}{way} ({_cause(error)}); check OPENAI_BASE_URL{check}"

    def _say_retry(self, state: "RetryCallState") -> None:
        """Say each reason for a retry once, when it has not passed by the second try."""
        reason = str(state.outcome.exception()) if state.outcome else ""
        if state.attempt_number == 2 and reason not in self._retried and len(self._retried) < MAX_REASONS_SAID:
            self._retried.add(reason)
            self.say(f"note: {reason}; trying up to {TRIES} times")

    async def _acquire_rate_limit(self, tokens: float) -> None:
        """Wait for the pause the endpoint asked for and for the limits; `tokens` is the request's size."""
        if self._request_limit:
            await self._request_limit.acquire()
        if self._token_limit:
            await self._token_limit.acquire(min(tokens, self._token_limit.max_rate))
        loop = asyncio.get_running_loop()
        while (wait := self._paused_until - loop.time()) > 0:
            await asyncio.sleep(wait * random.uniform(1.0, 1.2) + 0.001)  # not all at the same moment

    def _pause(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + min(seconds, MAX_PAUSE)
        self._paused_until = max(self._paused_until, until)

    def _apply_rate_limit_headers(self, headers: Any, used: Usage) -> None:
        """Slow down before a limit is hit: pause until all that is in flight, at this request's size, fits again."""
        for kind, size in (("requests", 1), ("tokens", used.input_tokens + used.output_tokens)):
            limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
            left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            reset = seconds_of(headers.get(f"x-ratelimit-reset-{kind}"))  # until `left` is back at `limit`
            needed = len(self.sending) * size
            if limit and left is not None and reset and left < min(needed, limit):
                self._pause(min(reset, (needed - left) * reset / (limit - left)))


def _limiter(per_minute: float | None) -> "AsyncLimiter | None":
    from aiolimiter import AsyncLimiter

    if not per_minute:
        return None
    at_once = max(1, per_minute / 4)  # a bucket of a whole minute would double the first one
    return AsyncLimiter(at_once, 60 * at_once / per_minute)


def _seconds_to_wait(state: "RetryCallState") -> float:
    """Seconds before the next try: what the endpoint asked for, else exponential; always with jitter."""
    error = state.outcome.exception() if state.outcome else None
    after = getattr(error, "after", None)
    if after is not None:
        return after * random.uniform(1.0, 1.2)
    return random.uniform(0.5, 1.0) * min(MAX_WAIT, FIRST_WAIT * 2 ** (state.attempt_number - 1))


def _number(value: object) -> float | None:
    """A finite number, or a text that is one; else None."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return without_key((str(cause) or type(cause).__name__).splitlines()[0])[:120]
