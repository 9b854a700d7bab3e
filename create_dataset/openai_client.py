"""Requests to an OpenAI-compatible endpoint: many at a time, within limits and a budget, retried where that can help.

Kept libraries do the waiting: `openai` the protocol (its own retries are off: they can't see the other requests),
`tenacity` the retries (over `backoff`, which is archived), `aiolimiter` the requests and tokens a minute (a leaky
bucket that takes any amount; `asyncio.Semaphore` knows no time, `throttled-py` wants a store for one process).
"""

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime

from create_dataset.pricing import Budget, BudgetReached, most_tokens
from router_data import InputError

DEFAULT_MODEL = "gpt-6-luna"
TRIES = 10
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds, of the backoff
LONGEST_PAUSE = 15 * 60.0  # seconds; an endpoint that asks for more is out of quota for now
GRACE = 30.0  # seconds for the answers in flight when a run is stopped
FAILURES_IN_A_ROW = 50  # then something is wrong with the run, not with the prompts
DROPPABLE = ("reasoning_effort", "temperature", "top_logprobs", "logprobs", "response_format", "n")
RETIRED_CODES = {"model_not_found", "model_deprecated", "model_retired", "DeploymentNotFound"}
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}


class StopRun(Exception):
    """The run can't go on; the message says why in one line."""


class NoAnswer(Exception):
    """This request has no usable answer; the message is the reason."""


class _Retry(Exception):
    """Worth another try; `after` is the wait the endpoint asked for, in seconds, `lost` whether it may be charged."""

    def __init__(self, reason: str, after: float | None = None, lost: bool = False, limited: bool = False) -> None:
        super().__init__(reason)
        self.after, self.lost, self.limited = after, lost, limited


@dataclass
class Choice:
    """One answer of the model."""

    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    logprobs: list[dict] = field(default_factory=list)


@dataclass
class Reply:
    """All answers to one request and the tokens it used."""

    choices: list[Choice]
    input_tokens: int
    output_tokens: int


def parse_reply(body: object) -> Reply:
    """Read a chat completion.

    Raises:
        ValueError: it is not one.
    """
    try:
        choices = [
            Choice(
                text=choice["message"].get("content") or "",
                finish_reason=choice.get("finish_reason"),
                refusal=choice["message"].get("refusal"),
                logprobs=(choice.get("logprobs") or {}).get("content") or [],
            )
            for choice in body["choices"]
        ]
        usage = body.get("usage") or {}
        return Reply(choices, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {str(body)[:200]}") from error


def model_name(flag: str | None) -> str:
    """The model: the flag, else OPENAI_MODEL from the environment or .env, else the default."""
    return flag or os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL


class Endpoint:
    """One endpoint with its limits; any number of tasks may `ask` it at once."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 60.0,
        say: Callable[[str], None] = print,
    ) -> None:
        """`timeout`: seconds for one whole request.

        Raises:
            InputError: OPENAI_API_KEY is not set.
        """
        from aiolimiter import AsyncLimiter
        from openai import AsyncOpenAI, Timeout

        if not os.environ.get("OPENAI_API_KEY"):
            raise InputError(
                "no OPENAI_API_KEY: copy .env.example to .env and put your key there (for a local endpoint, any word "
                "will do, and its address as OPENAI_BASE_URL)"
            )
        self.client = AsyncOpenAI(
            base_url=os.environ.get("OPENAI_BASE_URL") or None,
            max_retries=0,
            timeout=Timeout(timeout, connect=min(timeout, 10.0)),
        )
        self.timeout = timeout
        self.say = say

        def limiter(per_minute: float | None) -> AsyncLimiter | None:
            if not per_minute:
                return None
            at_once = max(1, per_minute / 4)  # a bucket of a whole minute would double the first one
            return AsyncLimiter(at_once, 60 * at_once / per_minute)

        self._requests, self._tokens = limiter(requests_per_minute), limiter(tokens_per_minute)
        self._paused_until = 0.0
        self.dropped: dict[str, set[str]] = {}  # parameters a model refused
        self.sending: set[asyncio.Task] = set()  # tasks with a request under way
        self.stopping = False

    async def check_model(self, model: str) -> None:
        """Ask whether the model exists and for how long.

        Raises:
            StopRun: wrong key, no such model, retired, or the endpoint can't be reached.
        """
        import openai

        try:
            found = await self.client.models.retrieve(model)
        except openai.APIConnectionError as error:
            raise StopRun(f"cannot reach {self.client.base_url} ({_cause(error)}); check OPENAI_BASE_URL") from error
        except openai.APIStatusError as error:
            if error.status_code == 404 and error.code not in RETIRED_CODES:
                return  # a compatible endpoint without this route
            if error.status_code in (401, 403, 404, 410):
                raise StopRun(self.refusal(error, model)) from error
            return  # the first request will tell
        except (ValueError, openai.OpenAIError):
            return
        ends = str(getattr(found, "shutdown_date", None) or "")[:10]
        if re.fullmatch(r"\d{4}-\d\d-\d\d", ends):
            if date.fromisoformat(ends) <= datetime.now(UTC).date():
                raise StopRun(f"the model {model} was shut down on {ends}; choose another with --model")
            self.say(f"note: {model} will be shut down on {ends}")

    async def ask(self, request: dict, budget: Budget) -> Reply:
        """Send a chat completion, again where that can help; `budget` bounds and counts its cost.

        Args:
            request: the body; `max_completion_tokens` is required, parameters the model refused are left out.

        Raises:
            StopRun, BudgetReached: the run must end. NoAnswer: this request can't be answered.
        """
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _Retry) and not self.stopping),
            stop=stop_after_attempt(TRIES),
            wait=_wait,
            reraise=True,
        )
        try:
            return await retrying(self._ask_once, request, budget)
        except _Retry as error:
            if error.limited and not self.stopping:
                raise StopRun(f"the endpoint still limits the rate after {TRIES} tries ({error})") from error
            raise NoAnswer(f"{error}, after {retrying.statistics['attempt_number']} tries") from error

    async def _ask_once(self, request: dict, budget: Budget) -> Reply:
        body = self.without_refused(request)
        most_input = most_tokens(json.dumps(body, ensure_ascii=False))
        most_output = request["max_completion_tokens"] * body.get("n", 1)
        await self._wait_for_a_turn(most_input / 4 + most_output)
        reserved = await budget.reserve(most_input, most_output)
        used, lost = (0, 0), True  # a request that ends in any unforeseen way may have been charged
        task = asyncio.current_task()
        self.sending.add(task)
        try:
            reply = await self._send(body)
            used, lost = (reply.input_tokens, reply.output_tokens), False
            return reply
        except _Retry as error:
            lost = error.lost
            raise
        except (StopRun, NoAnswer, _ParameterRefused) as error:
            lost = False
            if not isinstance(error, _ParameterRefused):
                raise
        finally:
            self.sending.discard(task)
            budget.settle(reserved, *used, lost=lost)
        return await self._ask_once(request, budget)  # now without the refused parameter

    async def _send(self, body: dict) -> Reply:
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self.timeout):  # the client's own bounds each read, not the whole
                # `chat.completions.create` walks through the body's types first, a third of all the work
                answer = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            reply = parse_reply(json.loads(answer.text))
            self._heed_headers(answer.headers, reply.input_tokens + reply.output_tokens)
            return reply
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _Retry(f"no answer within {self.timeout:g} s", lost=True) from error
        except openai.APIConnectionError as error:
            refused = "connect" in type(error.__cause__).__name__.lower()
            raise _Retry(f"connection failed ({_cause(error)})", lost=not refused) from error
        except openai.APIStatusError as error:
            raise self._judge(error, body) from error
        except ValueError as error:
            raise _Retry(f"broken answer ({str(error)[:200]})", lost=True) from error

    def _judge(self, error, body: dict) -> Exception:
        """What a refusal by HTTP status means: stop, try again, leave out a parameter, or give up this request."""
        status, code, message = error.status_code, str(error.code or ""), self.message(error)
        if status in (401, 402, 403, 404, 410) or code in RETIRED_CODES:
            return StopRun(self.refusal(error, body["model"]))
        if status == 429:
            if code in QUOTA_CODES or error.type in QUOTA_CODES:
                return StopRun("the quota of this key is used up; add credit, then resume")
            after = _retry_after(error.response.headers)
            if after is not None and after > LONGEST_PAUSE:
                return StopRun(f"the endpoint asks to wait {after / 60:.0f} minutes; resume later")
            self._pause(after if after is not None else FIRST_WAIT)
            return _Retry("HTTP 429, rate limit", after, limited=True)
        if status >= 500 or status in (408, 409):
            return _Retry(f"HTTP {status}", _retry_after(error.response.headers))
        if "content_filter" in code or "content_filter" in message or "content management policy" in message:
            return NoAnswer("stopped by the content filter")
        parameter = self._refused_parameter(error, body)
        if parameter:
            self.drop(body["model"], parameter)
            return _ParameterRefused(parameter)
        return NoAnswer(f"HTTP {status}: {message[:200]}")

    @staticmethod
    def _refused_parameter(error, body: dict) -> str | None:
        """The parameter of ours that a 400 or 422 complains about, if it can be done without."""
        if error.status_code not in (400, 422) or "context_length" in str(error.code):
            return None
        named = str(error.param or "").split(".")[0].split("[")[0]
        candidates = [p for p in (*DROPPABLE, "max_completion_tokens") if p in body]
        if named in candidates:
            return named
        # without a `param`, or with one such as "extra_forbidden": the first of ours that the message quotes
        return next((p for p in candidates if re.search(rf"(?<![\w]){p}(?![\w])", str(error.message))), None)

    def drop(self, model: str, parameter: str) -> None:
        """Leave out a parameter that a model refused from now on, and say so once."""
        dropped = self.dropped.setdefault(model, set())
        if parameter not in dropped:
            dropped.add(parameter)
            instead = "; sending max_tokens" if parameter == "max_completion_tokens" else ""
            self.say(f"note: {model} refuses '{parameter}': left out from now on{instead}")
        if parameter == "logprobs":
            dropped.add("top_logprobs")

    def without_refused(self, request: dict) -> dict:
        """The body without the parameters that its model refused."""
        dropped = self.dropped.get(request["model"], set())
        body = {name: value for name, value in request.items() if name not in dropped}
        if "max_completion_tokens" in dropped:
            body["max_tokens"] = request["max_completion_tokens"]
        if body.get("n") == 1:
            del body["n"]
        if "logprobs" not in body:
            body.pop("top_logprobs", None)
        return body

    def refusal(self, error, model: str) -> str:
        """What a 401 to 404 means and what to do, in one line."""
        if error.status_code == 401:
            return f"the endpoint {self.client.base_url} refuses the key; check OPENAI_API_KEY"
        if error.status_code == 402:
            return "the credit of this key is used up; add some, then resume"
        if error.status_code == 403:
            return f"this key may not use {model} ({self.message(error)[:200]})"
        return f"no model {model} at {self.client.base_url}, or it is retired; choose another with --model"

    def message(self, error) -> str:
        """The endpoint's own message on one line, without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        message = " ".join(str(body.get("message") or error.message or "").split())
        return message.replace(self.client.api_key or "\0", "***")

    async def _wait_for_a_turn(self, tokens: float) -> None:
        """Wait for the pause the endpoint asked for and for the limits; `tokens` is the request's size."""
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))
        loop = asyncio.get_running_loop()
        while (wait := self._paused_until - loop.time()) > 0:
            await asyncio.sleep(wait * random.uniform(1.0, 1.2) + 0.001)  # not all at the same moment

    def _pause(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + min(seconds, LONGEST_PAUSE)
        self._paused_until = max(self._paused_until, until)

    def _heed_headers(self, headers, tokens: int) -> None:
        """Slow down before a limit is hit: pause until all that is in flight, at this request's size, fits again."""
        for kind, size in (("requests", 1), ("tokens", tokens)):
            limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
            left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            reset = _duration(headers.get(f"x-ratelimit-reset-{kind}"))  # until `left` is back at `limit`
            needed = len(self.sending) * size
            if limit and left is not None and reset and left < min(needed, limit):
                self._pause(min(reset, (needed - left) * reset / (limit - left)))


class _ParameterRefused(Exception):
    """The endpoint named a parameter of ours that it doesn't take."""


def _wait(state) -> float:
    """Seconds before the next try: what the endpoint asked for, else exponential; always with jitter."""
    asked = state.outcome.exception().after
    if asked is not None:
        return asked * random.uniform(1.0, 1.2)
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** (state.attempt_number - 1))


def _retry_after(headers) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or a date), None without one."""
    milliseconds, value = _number(headers.get("retry-after-ms")), headers.get("retry-after")
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    if value is None or _number(value) is not None:
        return None if value is None else max(0.0, _number(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _duration(text: str | None) -> float | None:
    """Seconds of OpenAI's durations: "1s", "6m0s", "120ms", or a bare number of seconds."""
    if _number(text) is not None:
        return _number(text)
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"([\d.]+)(ms|s|m|h|d)", text or "")
    return sum(float(value) * units[unit] for value, unit in parts) if parts else None


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).splitlines()[0][:120]


# --- many at a time --------------------------------------------------------------------------------------------------


class Run:
    """Works through items, many at a time, and ends in order: all done, stopped, interrupted or out of budget."""

    def __init__(self, endpoint: Endpoint, max_in_flight: int) -> None:
        self.endpoint, self.max_in_flight = endpoint, max_in_flight
        self.reason: str | None = None  # why it ended early
        self.exit_code = 0
        self.failures_in_a_row = 0
        self._stop = asyncio.Event()

    def stop(self, reason: str, exit_code: int = 1) -> None:
        """Send nothing new; the answers in flight are waited for. A second call doesn't wait any more."""
        if self._stop.is_set():
            if exit_code > 128:
                for task in self._tasks:
                    task.cancel()
            return
        self.reason, self.exit_code = reason, exit_code
        self.endpoint.stopping = True
        self._stop.set()

    def count(self, failed: bool, reason: str = "") -> None:
        """Note how an item went; too many failures in a row stop the run."""
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        if self.failures_in_a_row == FAILURES_IN_A_ROW:
            self.stop(f"{FAILURES_IN_A_ROW} failures in a row, the last: {reason}")

    async def work_through(self, items: Iterable, work: Callable[[object], Awaitable[None]]) -> None:
        """Call `work` on each item, at most `max_in_flight` at a time.

        The first goes alone: it shows a wrong key or a refused parameter once, not `max_in_flight` times.
        """
        items = iter(items)
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM"):
            number = getattr(signal, name)
            with suppress(NotImplementedError, ValueError):  # Windows, and threads other than the main one
                loop.add_signal_handler(number, self._interrupt, name, 128 + number)

        async def worker(at_most: int | None = None) -> None:
            for count, item in enumerate(items, 1):
                if self._stop.is_set():
                    return
                try:
                    await work(item)
                except BudgetReached:
                    self.stop("the next request could pass --max_usd", exit_code=0)
                except (StopRun, InputError) as error:
                    self.stop(str(error))
                except asyncio.CancelledError:
                    if not self._stop.is_set():
                        raise
                    return
                if count == at_most:
                    return

        try:
            self._tasks = {asyncio.create_task(worker(at_most=1))}
            await self._until_done()
            self._tasks = {asyncio.create_task(worker()) for _ in range(self.max_in_flight)}
            await self._until_done()
        finally:
            for name in ("SIGINT", "SIGTERM"):
                with suppress(NotImplementedError, ValueError):
                    loop.remove_signal_handler(getattr(signal, name))

    def _interrupt(self, name: str, exit_code: int) -> None:
        if not self._stop.is_set():
            print(f"\n{name}: waiting for the answers in flight; once more to stop at once", file=sys.stderr)
        self.stop(f"interrupted by {name}", exit_code)

    async def _until_done(self) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        everything = asyncio.gather(*self._tasks)
        await asyncio.wait({stopped, everything}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not everything.done():
            for task in self._tasks - self.endpoint.sending:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=GRACE)
            for task in self._tasks:
                task.cancel()
        await everything
