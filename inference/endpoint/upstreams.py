"""The two models behind the endpoint: a request goes to one of them and its answer comes back as raw bytes.

A fault is mended before the first byte of an answer goes to the client. A failed connection, a 408, 429 or 5xx, and an
answer that is none (status 200 with nothing, a page of HTML, or an error as its first event) are tried again after a
short wait, or what Retry-After asks for; then the next model is asked, if there is one. So it is where the first model
can't take the request (400, 404, 413, 415, 422) or refuses the router's own key (401, 402, 403). What nobody can mend
and the client did not cause ends as a 502 that says which variable the operator has to look at.

The client is aiohttp: on two cores it forwarded 2,800 requests a second, httpx, which comes with openai, 440; and 1,000
streams at once took it 2 seconds, httpx 29.
"""

import asyncio
import json
import os
import random
import re
import time
import warnings
import zlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from inference.endpoint.apis import Api, Headers
from inference.endpoint.bodies import MAX_INLINE_BODY_BYTES, Body, BodyPayload
from router_data import InputError, is_loopback, retry_after

OPENAI_URL = "https://api.openai.com/v1"
KEY_VARIABLES = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}
ANTHROPIC_VERSION = "2023-06-01"  # where the client names none
INPUTS = frozenset("text image audio video file tools".split())

CONNECT_SECONDS = 10.0
FIRST_WAIT, MAX_WAIT = 0.25, 5.0  # seconds between two tries; a longer Retry-After means: don't try again
FIRST_EVENT_SECONDS = 5.0  # to wait behind a stream's first bytes for a whole event
MAX_FIRST_EVENT_BYTES = 8192
MAX_ERROR_BYTES = 2**20  # of an error's body, which is searched for the upstream's key
MIN_KEY_CHARACTERS = 8  # shorter keys are those of local servers, and words
MAX_HEADER_BYTES = 65536  # of one line of an answer

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
FORWARDED_HEADERS = frozenset(
    b"content-type accept accept-encoding user-agent openai-beta anthropic-version anthropic-beta idempotency-key "
    b"traceparent tracestate".split()
)
FORWARDED_PREFIX = b"x-stainless-"  # of the SDKs of OpenAI and Anthropic
DROPPED_ANSWER_HEADERS = HOP_BY_HOP | frozenset(
    b"set-cookie clear-site-data strict-transport-security alt-svc refresh location public-key-pins nel report-to "
    b"server-timing content-security-policy".split()
)
DROPPED_ANSWER_PREFIXES = (b"x-router-", b"access-control-")
DECODABLE = {"gzip", "deflate", "identity"}  # encodings in which an answer can be looked at
FIRST_EVENT = re.compile(rb"(?:^|\n)data:[^\n]*\r?\n\r?\n")
TIMEOUT, CONNECTION_FAILED = "timeout", "connection failed"  # reasons of `UpstreamFailed`


@dataclass(frozen=True)
class Upstream:
    """One of the two models.

    Attributes:
        name: "inferior" or "superior".
        model: what the upstream calls it.
        base_url: where it is, up to /v1.
        api_key: the key for it.
        max_input_tokens: longer requests are not sent to it by the router; None where that is not known.
        inputs: what it takes: text, image, audio, video, file, tools; None where that is not known.
    """

    name: str
    model: str
    base_url: str
    api_key: str = field(repr=False)
    max_input_tokens: int | None = None
    inputs: frozenset[str] | None = None

    @classmethod
    def from_environment(cls, name: str) -> "Upstream":
        """From <NAME>_MODEL, _BASE_URL (default: OpenAI's), _API_KEY, _MAX_INPUT_TOKENS and _INPUTS.

        Warns where the key would go over the network in clear.

        Raises:
            InputError: one is missing or wrong; the variable is named.
        """
        model_name, url_name, key_name = (f"{name.upper()}_{what}" for what in ("MODEL", "BASE_URL", "API_KEY"))
        model, base_url, key = (os.environ.get(v, "").strip() for v in (model_name, url_name, key_name))
        base_url = base_url.rstrip("/") or OPENAI_URL
        url = URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.user or url.password or url.query_string:
            raise InputError(f"{url_name} must read like {OPENAI_URL}, with no password and no query; mend it in .env")
        if not key and url.host in KEY_VARIABLES:
            variable = KEY_VARIABLES[url.host]
            key, key_name = os.environ.get(variable, "").strip(), f"{key_name} (or {variable})"
        for variable, value in ((model_name, model), (key_name, key)):
            if not value:
                raise InputError(f"no {variable}: put it into .env or the environment; .env.example says what it is")
            if not (value.isascii() and value.isprintable()):
                raise InputError(f"{variable} holds characters that no HTTP header can carry; mend it in .env")
        upstream = cls(name, model, base_url, key, _max_input_tokens(name), _inputs(name))
        if upstream.sends_key_in_clear:
            warnings.warn(
                f"{url_name} is http on another machine: its key and the prompts go there in clear", stacklevel=2
            )
        return upstream

    @property
    def proxy(self) -> str | None:
        """The HTTP proxy that the environment names for it."""
        url = URL(self.base_url)
        return None if proxy_bypass(str(url.host)) else getproxies().get(url.scheme)

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether the key goes to another machine without encryption."""
        url = URL(self.base_url)
        return url.scheme == "http" and not is_loopback(str(url.host))

    def lacks(self, inputs: Collection[str], tokens: int) -> str | None:
        """Why it can't take a request that holds these inputs and about so many tokens; None where it can."""
        missing = sorted(set(inputs) - self.inputs) if self.inputs is not None else []
        if missing:
            return f"{self.name} takes no {missing[0]}"
        if self.max_input_tokens is not None and tokens > self.max_input_tokens:
            return f"{self.name} takes {self.max_input_tokens} tokens"
        return None


def _max_input_tokens(name: str) -> int | None:
    variable = f"{name.upper()}_MAX_INPUT_TOKENS"
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not text.isdigit() or not int(text):
        raise InputError(f"{variable}={text} is not a number of tokens; mend it in .env")
    return int(text)


def _inputs(name: str) -> frozenset[str] | None:
    variable = f"{name.upper()}_INPUTS"
    words = os.environ.get(variable, "").replace(",", " ").lower().split()
    if unknown := set(words) - INPUTS:
        raise InputError(f"{variable} names {sorted(unknown)[0]}; it may name {', '.join(sorted(INPUTS))}")
    return frozenset(words) or None


class UpstreamUnavailable(Exception):
    """None of the models asked gave an answer that could be passed on.

    Attributes:
        failures: what went wrong, model by model: "inferior: status 503".
        status: the HTTP status for the client.
        code: for programs.
    """

    def __init__(self, failures: Sequence[str], status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.failures, self.status, self.code = list(failures), status, code


class UpstreamFailed(Exception):
    """An attempt ended without an answer.

    Attributes:
        reason: in a few words, for logs: "timeout", "connection failed", "empty answer", ...
        detail: what the upstream said.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class Answer:
    """An answer of which the first bytes are there. `close` it, read to its end or not."""

    upstream: Upstream
    status: int
    headers: Headers  # without those between upstream and us
    first: bytes
    seconds: float  # from the request to the first byte
    failures: list[str]  # of the models asked before this one
    _response: aiohttp.ClientResponse
    _is_whole: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive.

        Raises:
            aiohttp.ClientError, TimeoutError: the upstream broke off or fell silent.
        """
        chunk = self.first
        while chunk:
            yield chunk
            chunk = b"" if self._is_whole else await self._response.content.readany()

    async def read(self, at_most: int) -> bytes | None:
        """The whole body; None where it has more bytes. Raises as `chunks` does."""
        body = b""
        async for chunk in self.chunks():
            body += chunk
            if len(body) > at_most:
                return None
        return body

    def close(self) -> None:
        """Give the connection back, or end it where the answer has not ended."""
        self._response.close()

    def header(self, name: bytes) -> bytes:
        """The value of a header; empty where there is none."""
        return next((value for header, value in self.headers if header == name), b"")


@dataclass(frozen=True)
class UpstreamRequest:
    """What is sent to an upstream.

    Attributes:
        method: HTTP.
        path: below its base URL.
        headers: the client's; those that are not meant for the upstream are left out.
        query: the client's query string.
        body: the client's.
        model_span: the bytes of the model's name in it, which each upstream's own replaces; None leaves the body.
        api: the API, where the router knows it: then answers that are none are recognised.
    """

    method: str
    path: str
    headers: Headers
    query: bytes = b""
    body: Body | None = None
    model_span: tuple[int, int] | None = None
    api: Api | None = None

    def data_for(self, upstream: Upstream) -> bytes | BodyPayload | None:
        """The body for this upstream."""
        if self.body is None:
            return None
        body = self.body.with_model(*self.model_span, upstream.model) if self.model_span else self.body
        return b"".join(body.parts) if body.size <= MAX_INLINE_BODY_BYTES else BodyPayload(body)


class UpstreamClient:
    """Sends requests to the upstreams; use it in an `async with` block."""

    def __init__(
        self, upstreams: Sequence[Upstream], timeout: float, retries: int, forwarded_headers: Collection[str] = ()
    ) -> None:
        """
        Args:
            upstreams: the models.
            timeout: seconds to wait for the first byte, and between two pieces of an answer.
            retries: how often one model is tried again.
            forwarded_headers: names in lower case of further headers of the client that go on to the upstreams.
        """  # noqa: D205, D212
        self.timeout, self.retries = timeout, retries
        self._forwarded_headers = FORWARDED_HEADERS | {name.encode() for name in forwarded_headers}
        self._proxies = {upstream.name: upstream.proxy for upstream in upstreams}

    async def __aenter__(self) -> "UpstreamClient":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the endpoint bounds what is in flight
            cookie_jar=aiohttp.DummyCookieJar(),  # nothing is kept from one client for the next
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=min(self.timeout, CONNECT_SECONDS), sock_read=self.timeout
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, upstreams: Sequence[Upstream], request: UpstreamRequest) -> Answer:
        """The answer of the first of `upstreams` that gives one.

        Raises:
            UpstreamUnavailable: the last one gave none, or refused what is not the client's to mend. Another error by
                HTTP status is the answer.
        """
        failures: list[str] = []
        for upstream in upstreams:
            is_last = upstream is upstreams[-1]
            try:
                answer = await self._ask_with_retries(upstream, request)
            except UpstreamFailed as error:
                failures.append(f"{upstream.name}: {error.reason}")
                if is_last:
                    raise unavailable(failures, error) from error
                continue
            if is_last or not may_do_better(upstream, answer.status):
                break
            answer.close()
            failures.append(f"{upstream.name}: status {answer.status}")
        answer.failures = failures
        if fault := operators_fault(answer, request):
            answer.close()
            raise fault
        return answer

    async def ask_once(self, upstream: Upstream, request: UpstreamRequest) -> Answer:
        """One try with one upstream.

        Raises:
            UpstreamFailed: it ended without an answer.
        """
        started = time.perf_counter()
        response = None
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._send(upstream, request)
                first = await response.content.readany()
            seconds = time.perf_counter() - started
            headers = answer_headers(response.raw_headers)
            answer = Answer(upstream, response.status, headers, first, seconds, [], response)
            if response.status >= 400:
                await self._take_whole_error(answer)
            elif request.api and 200 <= response.status < 300:
                await self._check_beginning(answer)
            return answer
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError):
                raise UpstreamFailed(TIMEOUT) from error
            if isinstance(error, aiohttp.ClientError | OSError):
                raise UpstreamFailed(CONNECTION_FAILED) from error
            raise

    async def _send(self, upstream: Upstream, request: UpstreamRequest) -> aiohttp.ClientResponse:
        url = f"{upstream.base_url}{request.path}" + (f"?{request.query.decode('latin-1')}" if request.query else "")
        return await self._session.request(
            request.method,
            URL(url, encoded=True),
            data=request.data_for(upstream),
            headers=request_headers(request, upstream, self._forwarded_headers),
            allow_redirects=False,
            proxy=self._proxies[upstream.name],
        )

    async def _ask_with_retries(self, upstream: Upstream, request: UpstreamRequest) -> Answer:
        for attempt in range(self.retries + 1):
            is_last = attempt == self.retries
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1)
            try:
                answer = await self.ask_once(upstream, request)
            except UpstreamFailed as error:
                if is_last or error.reason == TIMEOUT:  # it would take as long again
                    raise
            else:
                if not is_down(answer.status) or is_last:
                    return answer
                asked_for = retry_after({name.decode(): value.decode("latin-1") for name, value in answer.headers})
                wait = max(wait, asked_for or 0.0)
                if wait > MAX_WAIT:
                    return answer
                answer.close()
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _take_whole_error(self, answer: Answer) -> None:
        """Read an error to its end, and take the upstream's key out of it: some servers quote it."""
        body = answer.first
        while (more := await answer._response.content.readany()) and len(body) < MAX_ERROR_BYTES:
            body += more
        answer._response.close()
        # Where an encoding that was not asked for can't be undone the body is left out: the key could stand in it
        body = decompressed(body, answer.header(b"content-encoding"), MAX_ERROR_BYTES) or b""
        key = answer.upstream.api_key
        if len(key) >= MIN_KEY_CHARACTERS:
            body = body.replace(key.encode(), b"***")
            answer.headers = [(name, value.replace(key.encode(), b"***")) for name, value in answer.headers]
        dropped = (b"content-length", b"content-encoding")
        answer.headers = [(name, value) for name, value in answer.headers if name not in dropped]
        answer.headers.append((b"content-length", b"%d" % len(body)))
        answer.first, answer._is_whole = body, True

    async def _check_beginning(self, answer: Answer) -> None:
        """Raises UpstreamFailed where a success is none: nothing, a page, or an error as its first event."""
        content_type = answer.header(b"content-type").partition(b";")[0].strip().lower()
        if content_type == b"text/html":
            raise UpstreamFailed("a page of HTML")
        is_stream = content_type == b"text/event-stream"
        if is_stream and not answer.header(b"content-encoding"):
            await self._await_first_event(answer)
        if not answer.first.strip():
            raise UpstreamFailed("empty answer")
        if detail := error_in_beginning(answer.first, is_stream):
            raise UpstreamFailed("an error as its answer", _without_key(detail, answer.upstream))

    @staticmethod
    async def _await_first_event(answer: Answer) -> None:
        """Read on until the first event is whole, but not for long: comments keep a client from giving up."""
        try:
            async with asyncio.timeout(FIRST_EVENT_SECONDS):
                while len(answer.first) < MAX_FIRST_EVENT_BYTES and not FIRST_EVENT.search(answer.first):
                    if not (more := await answer._response.content.readany()):
                        break
                    answer.first += more
        except TimeoutError:
            pass


def error_in_beginning(first: bytes, is_stream: bool) -> str | None:
    """The error with which an answer begins, in the upstream's words; None where it begins well."""
    if b'"error"' not in first and b"response.failed" not in first and b"[DONE]" not in first:
        return None
    if is_stream:
        found = FIRST_EVENT.search(first)
        text = b"\n".join(re.findall(rb"(?:^|\n)data: ?([^\r\n]*)", found[0] if found else first))
        if text.strip() == b"[DONE]":
            return "nothing but its end"
    else:
        text = first
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _error_of(fields) if isinstance(fields, dict) else None


def _error_of(fields: dict) -> str | None:
    response = fields.get("response")
    if fields.get("type") == "response.failed" and isinstance(response, dict):
        fields = {"error": response.get("error") or "response.failed"}
    if any(fields.get(name) for name in ("choices", "output", "content")) or not fields.get("error"):
        return None
    return _message_of(fields["error"])


def _message_of(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:300]


def is_down(status: int) -> bool:
    """Whether another try may do better."""
    return status in (408, 429) or 500 <= status <= 599


def may_do_better(upstream: Upstream, status: int) -> bool:
    """Whether the other model may do better than this one, which answered with this status.

    What the inferior model can't take, the superior one may take; what the superior one can't take is the client's.
    """
    if 200 <= status < 300:
        return False
    return upstream.name == "inferior" or is_down(status) or status in (401, 402, 403)


def operators_fault(answer: Answer, request: UpstreamRequest) -> UpstreamUnavailable | None:
    """The error for the client where an answer's status is the operator's to mend, or is none of HTTP's."""
    status, upstream = answer.status, answer.upstream
    variable = upstream.name.upper()
    failures = [*answer.failures, f"{upstream.name}: status {status}"]
    if not 200 <= status <= 599 or 300 <= status < 400:
        message = f"the {upstream.name} model answered with status {status}; look at {variable}_BASE_URL"
        return UpstreamUnavailable(failures, 502, "upstream_bad_status", message)
    if status in (401, 402, 403):
        what = "has no credit left" if status == 402 else "is refused"
        message = f"the router's own key for the {upstream.name} model {what} (status {status}); "
        message += f"look at {variable}_API_KEY"
        return UpstreamUnavailable(failures, 502, "upstream_refused_key", message)
    if status == 404 and request.api:
        missing = f"has no model {upstream.model!r}, or no {request.path}"
        message = f"the {upstream.name} model's server {missing}; look at {variable}_MODEL and {variable}_BASE_URL. "
        message += "Where it speaks chat completions only, put LiteLLM's proxy in front of it"
        return UpstreamUnavailable(failures, 502 if request.api.generates else 404, "upstream_not_found", message)
    return None


def unavailable(failures: list[str], error: UpstreamFailed) -> UpstreamUnavailable:
    """The error for the client where the last model gave no answer."""
    told = f"; it says: {error.detail}" if error.detail else ""
    message = f"no answer ({'; '.join(failures)}){told}"
    if error.reason == TIMEOUT:
        return UpstreamUnavailable(failures, 504, "upstream_timeout", message)
    code = "upstream_unreachable" if error.reason == CONNECTION_FAILED else "upstream_no_answer"
    return UpstreamUnavailable(failures, 502, code, message)


def request_headers(request: UpstreamRequest, upstream: Upstream, forwarded: Collection[bytes]) -> CIMultiDict[str]:
    """The client's headers that are meant for the upstream, with the upstream's own key."""
    kept: CIMultiDict[str] = CIMultiDict()
    connection_header_names = _connection_header_names(request.headers)
    for raw_name, value in request.headers:
        name = raw_name.lower()
        if (name in forwarded or name.startswith(FORWARDED_PREFIX)) and name not in connection_header_names:
            kept.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
    if "accept-encoding" in kept:
        kept["accept-encoding"] = _decodable(kept["accept-encoding"])
    if request.api and request.api.is_anthropic:
        kept.setdefault("anthropic-version", ANTHROPIC_VERSION)
        kept["x-api-key"] = upstream.api_key
    if not (request.api and request.api.is_anthropic and "anthropic.com" in upstream.base_url):
        kept["authorization"] = f"Bearer {upstream.api_key}"
    return kept


def answer_headers(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The upstream's headers for the client: none of this connection's, of the router's own, or for browsers."""
    connection_header_names = _connection_header_names(headers)
    kept = []
    for raw_name, value in headers:
        name = raw_name.lower()
        dropped = name in DROPPED_ANSWER_HEADERS or name in connection_header_names
        if not dropped and not name.startswith(DROPPED_ANSWER_PREFIXES):
            kept.append((name, value))
    return kept


def _connection_header_names(headers: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """The headers that `connection` names: they are meant for the next hop only."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {word.strip().lower() for value in values for word in value.split(b",")}


@lru_cache(maxsize=16)
def _decodable(accept_encoding: str) -> str:
    """The encodings of `accept-encoding` in which the router can look at an error."""
    words = (word.strip() for word in accept_encoding.split(","))
    return ", ".join(word for word in words if word.partition(";")[0].strip().lower() in DECODABLE) or "identity"


def decompressed(body: bytes, encoding: bytes, at_most: int) -> bytes | None:
    """A body without its encoding, at most so many bytes of it; None where the encoding can't be undone."""
    if encoding.strip().lower() in (b"", b"identity"):
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, at_most)
    except zlib.error:
        return None


def _without_key(text: str, upstream: Upstream) -> str:
    return text.replace(upstream.api_key, "***") if len(upstream.api_key) >= MIN_KEY_CHARACTERS else text
