"""The bodies of requests: read within limits of size, time and memory, parsed, and sent on with another model's name.

A body is kept as the pieces in which it arrived. Sending it on replaces the bytes of the model's name and copies
nothing else, so a request takes the memory of its body once.
"""

import asyncio
import json
import queue
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from aiohttp import payload

from inference.endpoint.apis import Api, ApiError, Receive
from inference.endpoint.body_parser import ParsedRequest, parse
from router_data import PROJECT_ROOT
from router_model import UserTurns

MAX_BODY_BYTES = 64 * 2**20  # of one request; images come as base64
MAX_BODIES_BYTES = 128 * 2**20  # of all requests in flight together
UNCOUNTED_BODY_BYTES = 64 * 1024  # of a body that is not counted among them; there are at most --max_in_flight
MAX_INLINE_BODY_BYTES = 32 * 1024  # of a body parsed on the event loop: 10 ms for the worst that was found
PARTS_AT_ONCE = 8  # pieces of 64 KiB sent in one turn of the event loop
BODY_SECONDS = 60.0  # for a whole body to arrive
BODY_SILENCE_SECONDS = 10.0  # between two pieces of it
PARSER_PROCESSES = 2


class ClientGone(Exception):
    """The client closed its connection before the request was whole."""


@dataclass
class Body:
    """A request's body. `release` gives its memory back to the others that wait for some."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    _give_back: Callable[[], None] | None = None

    @property
    def is_counted(self) -> bool:
        """Whether its memory is reserved."""
        return self._give_back is not None

    def with_model(self, start: int, end: int, name: str) -> "Body":
        """The body with another model's name in the place of these bytes, and not a byte else changed."""
        name_json = json.dumps(name).encode()
        parts: list[bytes] = []
        at = 0
        for part in self.parts:
            first, last = max(start - at, 0), max(end - at, 0)
            if first < len(part) and last > 0:
                starts_here = start >= at
                parts += [part[:first] if starts_here else b"", name_json if starts_here else b"", part[last:]]
            else:
                parts.append(part)
            at += len(part)
        return Body([part for part in parts if part], self.size - (end - start) + len(name_json))

    def release(self) -> None:
        """Forget the body; harmless where that was done before."""
        self.parts = []
        if self._give_back:
            self._give_back()
            self._give_back = None


class BodyPayload(payload.Payload):
    """A body as aiohttp sends it: piece by piece, with its length."""

    def __init__(self, body: Body) -> None:
        super().__init__(body)
        self._size = body.size
        self._parts = body.parts

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return b"".join(self._parts).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        """Send the pieces; a slow upstream makes this wait, and a fast one lets others have their turn."""
        for i, part in enumerate(self._parts):
            await writer.write(part)
            if i % PARTS_AT_ONCE == 0:
                await asyncio.sleep(0)


class MemoryBudget:
    """Bytes that all large bodies together may take; who finds too few waits, first come, first served."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, size: int) -> None:
        """Take so many bytes, as soon as they are there."""
        if self._waiting or self.free < size:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give_back(size)
                raise
        else:
            self.free -= size

    def give_back(self, size: int) -> None:
        """Return bytes, and let those go on that now have enough."""
        self.free += size
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= size
                turn.set_result(None)


class BodyReader:
    """Reads and parses bodies, within limits that hold for all requests together."""

    def __init__(self) -> None:
        self._budget = MemoryBudget(MAX_BODIES_BYTES)
        self._threads = ThreadPoolExecutor(PARSER_PROCESSES, thread_name_prefix="bodies")
        self._parsers: queue.LifoQueue[ParserProcess] = queue.LifoQueue()
        for _ in range(PARSER_PROCESSES):
            self._parsers.put(ParserProcess())

    def warm_up(self) -> None:
        """Start a parsing process in the background: that takes half a second, which no request should wait for."""
        self._threads.submit(self._with_parser, ParserProcess.start)

    def close(self) -> None:
        """End the parsing processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._parsers.empty():
            self._parsers.get().stop()

    @asynccontextmanager
    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[Body]:
        """The whole body; its memory is given back at the end of the block at the latest.

        Raises:
            ApiError: it is too large, too slow, or compressed. ClientGone: it never came.
        """
        body = Body()
        try:
            await self._read_into(body, headers, receive)
            yield body
        finally:
            body.release()

    async def _read_into(self, body: Body, headers: dict[bytes, bytes], receive: Receive) -> None:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(415, "unsupported_media_type", "send the body without a Content-Encoding")
        announced = headers.get(b"content-length")
        expected = int(announced) if announced and announced.isdigit() else None
        if expected is not None and expected > UNCOUNTED_BODY_BYTES:
            await self._reserve(body, expected)
        until = asyncio.get_running_loop().time() + BODY_SECONDS
        while True:
            message = await self._next_message(receive, until)
            part = message.get("body", b"")
            body.size += len(part)
            if expected is None and body.size > UNCOUNTED_BODY_BYTES and not body.is_counted:
                await self._reserve(body, MAX_BODY_BYTES)  # it does not say how long it is
            if body.size > MAX_BODY_BYTES:
                raise too_large()
            if part:
                body.parts.append(part)
            if not message.get("more_body"):
                return

    @staticmethod
    async def _next_message(receive: Receive, until: float) -> MutableMapping[str, Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(until, loop.time() + BODY_SILENCE_SECONDS)):
                message = await receive()
        except TimeoutError:
            text = f"the body did not arrive: {BODY_SECONDS:g} s in all, {BODY_SILENCE_SECONDS:g} s between two pieces"
            raise ApiError(408, "request_timeout", text, headers={"connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _reserve(self, body: Body, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._budget.reserve(size)
        except TimeoutError:
            message = "too many large requests at once"
            headers = {"retry-after": "5", "connection": "close"}
            raise ApiError(429, "too_many_requests", message, headers=headers) from None
        body._give_back = partial(self._budget.give_back, size)

    async def parse(self, body: Body, api: Api, max_length: int, measure: bool) -> ParsedRequest:
        """As `body_parser.parse`; on the event loop where that takes a few milliseconds, else in another process."""
        if body.size <= MAX_INLINE_BODY_BYTES:
            return parse(b"".join(body.parts), api, max_length, measure)
        order = {"size": body.size, "api": asdict(api), "max_length": max_length, "measure": measure}
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._with_parser, ParserProcess.parse, body.parts, order
        )

    def _with_parser(self, do: Callable[..., Any], *args: Any) -> Any:
        parser = self._parsers.get()
        try:
            return do(parser, *args)
        finally:
            self._parsers.put(parser)


class ParserProcess:
    """A process that parses large bodies (`body_parser.serve_parser`), started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process where it does not run."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inference.endpoint.body_parser"],
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )

    def parse(self, parts: list[bytes], order: dict) -> ParsedRequest:
        """The parsed request.

        Raises:
            ApiError: as `body_parser.parse`, or the process broke down over this body.
        """
        self.start()
        assert self._process
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.writelines(parts)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            self.stop()
            raise ApiError(413, "request_too_complex", "the body's JSON takes too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise ApiError(*answer["error"])
        fields = answer["request"]
        turns = fields.pop("turns")
        return ParsedRequest(turns=None if turns is None else UserTurns(turns), **fields)

    def stop(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def too_large() -> ApiError:
    """The error of a body over the limit."""
    message = f"the body is larger than {MAX_BODY_BYTES:,} bytes"
    return ApiError(413, "request_too_large", message, headers={"connection": "close"})
