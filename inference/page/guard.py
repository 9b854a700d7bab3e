"""Who may use the page: names it answers to, requests that count as local, and logins that are guessed slowly.

While the page is bound to a loopback address, any web page that the user visits could reach it by DNS rebinding, or
upload to it across origins. So only requests to a loopback name, or to one that --allowed_hosts names, are answered.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from router_data import is_loopback, printable

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
FORWARDING_HEADERS = (
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via", "cf-connecting-ip",
    "true-client-ip",
)  # fmt: skip
FIRST_DELAY, MAX_DELAY = 1.0, 30.0  # seconds before a login after one that failed; doubled with each
MAX_ADDRESSES = 10_000  # whose failed logins are remembered
MAX_BODY_BYTES = 64_000_000  # of a request: a file may have 50 MB; whoever has no login could send any number

Scope = MutableMapping[str, Any]


def host_name(host: str) -> str:
    """The name in a Host header or of an origin, in lower case, without port and brackets; "" where it is malformed."""
    try:
        return urlsplit(f"//{host.strip()}").hostname or ""
    except ValueError:
        return ""


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a proxy says that it stands in between."""
    return any(name in headers for name in FORWARDING_HEADERS)


def is_local_request(headers: Mapping[str, str], client: str | None) -> bool:
    """Whether a request comes straight from this machine: no proxy in between, and to one of its own names."""
    if is_forwarded(headers):
        return False
    return client is not None and is_loopback(client) and is_loopback(host_name(headers.get("host", "")))


class Guard:
    """ASGI middleware: refuses foreign hosts and origins and endless bodies, and slows down who guesses the login.

    Args:
        app: the application behind it.
        hosts: the names that are answered; None answers to any.
    """

    def __init__(self, app: Any, hosts: Iterable[str] | None) -> None:
        self.app = app
        self.hosts = None if hosts is None else {host_name(name) or name.lower() for name in hosts}
        self._failures: dict[str, int] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of logins under way

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer or pass on a request or a websocket."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self.fault(headers):
            return await refuse(scope, receive, send, 421, problem)
        if not scope["path"].isprintable():  # gradio prints parts of some paths
            return await refuse(scope, receive, send, 400, "a path has no control characters")
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return await refuse(scope, receive, send, 413, f"send at most {MAX_BODY_BYTES:,} bytes, and say how many")
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login"):
            return await self.log_in(scope, headers, receive, send)
        return await self.app(scope, receive, send)

    def fault(self, headers: Mapping[str, str]) -> str | None:
        """Why a request is refused; None where it is answered."""
        if self.hosts is None:
            return None
        if host_name(headers.get("host", "")) not in self.hosts:
            return "this page answers to local names only; name others with --allowed_hosts"
        origin = headers.get("origin")
        if origin is not None and host_name(origin.partition("://")[2]) not in self.hosts:
            return "another web page may not use this one"
        return None

    async def log_in(self, scope: Scope, headers: Mapping[str, str], receive: Any, send: Any) -> None:
        """Pass a login on, after a pause where the address has failed before; one at a time for each address.

        All that comes forwarded counts as one address: anyone can write another one into each request.
        """
        client = scope["client"][0] if scope.get("client") else "unknown"
        address = "a proxy" if is_forwarded(headers) else client
        async with self._turns.setdefault(address, asyncio.Lock()):
            failures = self._failures.get(address, 0)
            if failures:
                await asyncio.sleep(min(MAX_DELAY, FIRST_DELAY * 2 ** (failures - 1)))
            status = 0

            async def watched(message: Any) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            await self.app(scope, receive, watched)
            if status < 400:
                self._failures.pop(address, None)
                return
            if len(self._failures) >= MAX_ADDRESSES:
                self._failures.clear()
            self._failures[address] = failures + 1
            print(f"login failed, {failures + 1} in a row from {printable(address)}", file=sys.stderr, flush=True)


async def refuse(scope: Scope, receive: Any, send: Any, status: int, problem: str) -> None:
    """Answer with this status, or close a websocket before it opens."""
    from starlette.responses import PlainTextResponse
    from starlette.websockets import WebSocketClose

    is_websocket = scope["type"] == "websocket"
    answer = WebSocketClose(1008, problem) if is_websocket else PlainTextResponse(problem, status)
    await answer(scope, receive, send)
