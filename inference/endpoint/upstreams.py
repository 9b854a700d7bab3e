"""The two models behind the endpoint: a request goes to one of them and its answer comes back as raw bytes.

What can be mended is mended before the first byte of an answer: a failed connection, a 408, 429 or 5xx is tried again
after a short wait, or what Retry-After asks for; then the next model is asked, if there is one. Once a byte has gone to
the client nothing is repeated.

The client is aiohttp: on two cores it forwarded 2,800 requests a second, httpx, which comes with openai, 440; and 1,000
streams at once took it 2 seconds, httpx 29.
"""

import asyncio
import io
import os
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from router_data import InputError

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
FIRST_WAIT, MAX_WAIT = 0.25, 5.0  # seconds between two tries; a longer Retry-After means: don't try again
MAX_HEADER_BYTES = 65536  # bytes of one line

HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    "upgrade".split()
)
CREDENTIALS = frozenset("authorization api-key x-api-key cookie".split())  # they are for this endpoint
DROPPED_REQUEST_HEADERS = HOP_BY_HOP | CREDENTIALS | {"host", "content-length", "expect"}

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Upstream:
    """One of the two models: "inferior" or "superior", what the upstream calls it, where it is, and the key."""

    name: str
    model: str
    base_url: str
    api_key: str = field(repr=False)

    @classmethod
    def from_environment(cls, name: str) -> "Upstream":
        """From <NAME>_MODEL, <NAME>_BASE_URL (default: OpenAI's) and <NAME>_API_KEY.

        Raises:
            InputError: one is missing or wrong; the variable is named.
        """
        model_name, url_name, key_name = (f"{name.upper()}_{what}" for what in ("MODEL", "BASE_URL", "API_KEY"))
        model, base_url, key = (os.environ.get(v, "").strip() for v in (model_name, url_name, key_name))
        base_url = base_url.rstrip("/") or OPENAI_URL
        url = URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.user or url.password or url.query_string:
            raise InputError(f"{url_name} must read like {OPENAI_URL}, with no password and no query; mend it in .env")
        if not key and url.host == URL(OPENAI_URL).host:
            key, key_name = os.environ.get("OPENAI_API_KEY", "").strip(), f"{key_name} (or OPENAI_API_KEY)"
        for variable, value in ((model_name, model), (key_name, key)):
            if not value:
                raise InputError(f"no {variable}: put it into .env or the environment; .env.example says what it is")
            if not (value.isascii() and value.isprintable()):
                raise InputError(f"{variable} holds characters that no HTTP header can carry; mend it in .env")
        return cls(name, model, base_url, key)

    @property
    def proxy(self) -> str | None:
        """The HTTP proxy that the environment names for it."""
        url = URL(self.base_url)
        return None if proxy_bypass(url.host) else getproxies().get(url.scheme)


class UpstreamUnavailable(Exception):
    """None of the models asked gave an answer that could be passed on.

    Attributes:
        failures: what went wrong, upstream by upstream: "inferior: status 503".
        status: the HTTP status for the client, 502 or 504.
    """

    def __init__(self, failures: Sequence[str]):
        super().__init__("; ".join(failures))
        self.failures = list(failures)
        self.status = 504 if failures[-1].endswith(UpstreamFailed.TIMEOUT) else 502


class UpstreamFailed(Exception):
    """An attempt ended before the first byte of an answer."""

    TIMEOUT = "timeout"
    CONNECTION = "connection failed"


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

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive.

        Raises:
            aiohttp.ClientError, TimeoutError: the upstream broke off or fell silent.
        """
        chunk = self.first
        while chunk:
            yield chunk
            chunk = await self._response.content.readany()

    def close(self) -> None:
        """Give the connection back, or end it where the answer has not ended."""
        self._response.close()


class UpstreamClient:
    """Sends chat completions; use it in an `async with` block."""

    def __init__(self, upstreams: Sequence[Upstream], timeout: float, retries: int):
        """
        Args:
            upstreams: the models.
            timeout: seconds to wait for the first byte, and between two pieces of an answer.
            retries: how often one model is tried again.
        """
        self.timeout, self.retries = timeout, retries
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

    async def ask(
        self, upstreams: Sequence[Upstream], bodies: dict[str, bytes], headers: Headers, query: bytes
    ) -> Answer:
        """The answer of the first of `upstreams` that is not down.

        Args:
            upstreams: in the order in which they are asked.
            bodies: the request for each upstream, by its name.
            headers: the client's; those that are not meant for the upstream are left out.
            query: the client's query string.

        Raises:
            UpstreamUnavailable: the last one gave none. If it gave an error by HTTP status, that is the answer.
        """
        failures: list[str] = []
        for upstream in upstreams:
            try:
                answer = await self._ask_with_retries(upstream, bodies[upstream.name], headers, query)
            except UpstreamFailed as error:
                failures.append(f"{upstream.name}: {error}")
                continue
            if not is_down(answer.status) or upstream is upstreams[-1]:
                answer.failures = failures
                return answer
            answer.close()
            failures.append(f"{upstream.name}: status {answer.status}")
        raise UpstreamUnavailable(failures)

    async def _ask_with_retries(self, upstream: Upstream, body: bytes, headers: Headers, query: bytes) -> Answer:
        for attempt in range(self.retries + 1):
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1)
            try:
                answer = await self._ask_once(upstream, body, headers, query)
            except UpstreamFailed as error:
                if attempt == self.retries or str(error) == UpstreamFailed.TIMEOUT:  # it would take as long again
                    raise
            else:
                wait = max(wait, retry_after(answer.headers))
                if not is_down(answer.status) or attempt == self.retries or wait > MAX_WAIT:
                    return answer
                answer.close()
            await asyncio.sleep(min(wait, MAX_WAIT))
        raise AssertionError("the last attempt returns or raises")

    async def _ask_once(self, upstream: Upstream, body: bytes, headers: Headers, query: bytes) -> Answer:
        started = time.perf_counter()
        url = f"{upstream.base_url}/chat/completions" + (f"?{query.decode('latin-1')}" if query else "")
        response = None
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._session.post(
                    URL(url, encoded=True),
                    data=io.BytesIO(body),
                    headers=request_headers(headers, upstream.api_key),
                    allow_redirects=False,
                    proxy=self._proxies[upstream.name],
                )
                first = await response.content.readany()
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError):
                raise UpstreamFailed(UpstreamFailed.TIMEOUT) from error
            if isinstance(error, aiohttp.ClientError | OSError):
                raise UpstreamFailed(UpstreamFailed.CONNECTION) from error
            raise
        seconds = time.perf_counter() - started
        return Answer(upstream, response.status, response_headers(response.raw_headers), first, seconds, [], response)


def is_down(status: int) -> bool:
    """Whether another try, or another model, may do better."""
    return status in (408, 429) or status >= 500


def retry_after(headers: Headers) -> float:
    """Seconds that the upstream asks to wait: 0 where it doesn't say, infinite where it names a date."""
    found = dict(headers)
    for name, unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1)):
        if name in found:
            number = re.fullmatch(rb"\s*(\d{1,9}(\.\d+)?)\s*", found[name])
            return float(number[1]) * unit if number else float("inf")
    return 0.0


def request_headers(headers: Headers, api_key: str) -> CIMultiDict:
    """The client's headers for the upstream, with the upstream's own key."""
    kept = CIMultiDict(
        (name, value.decode("utf-8", "replace")) for name, value in _end_to_end(headers, DROPPED_REQUEST_HEADERS)
    )
    kept["authorization"] = f"Bearer {api_key}"
    return kept


def response_headers(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The upstream's headers for the client; x-router-... are ours to set."""
    return [
        (name.encode(), value) for name, value in _end_to_end(headers, HOP_BY_HOP) if not name.startswith("x-router-")
    ]


def _end_to_end(headers: Sequence[tuple[bytes, bytes]], dropped: frozenset[str]) -> list[tuple[str, bytes]]:
    """Headers without those dropped and those that `connection` names, names in lower case."""
    named = [(name.decode("latin-1").lower(), value) for name, value in headers]
    connection_header_names = {
        word.strip().lower()
        for name, value in named
        if name == "connection"
        for word in value.decode("latin-1").split(",")
    }
    return [(name, value) for name, value in named if name not in dropped and name not in connection_header_names]
