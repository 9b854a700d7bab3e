"""HTTP as uvicorn parses it, within limits that hold before a key is checked.

Without them a client takes the endpoint down with headers that never end, or with connections that say nothing; and a
request with `Upgrade` loses its body, which would then run as the next request (uvicorn's parser takes what follows
such headers for another protocol). HTTP/2 clients send that header on plain connections and go on in HTTP/1.1.
"""

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass, field

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.endpoint.bodies import MAX_BODY_BYTES

MAX_HEADER_BYTES = 64 * 1024  # request line and headers
HEADER_SECONDS = 10.0  # for them to arrive; also for the first byte of a connection
MAX_MESSAGE_BYTES = 2 * MAX_BODY_BYTES  # of a request with its framing: chunks may be small, and have extensions
LOOPBACK = ("127.", "::1", "::ffff:127.")
UPGRADE_HEADER = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)


@dataclass
class ConnectionLimits:
    """How many connections may be open, and how many there are.

    Attributes:
        in_all: at most, from everywhere.
        per_address: at most, from one address; None spares loopback addresses and gives the others half of all.
    """

    in_all: int
    per_address: int | None = None
    open: Counter[str] = field(default_factory=Counter)

    def take(self, address: str) -> bool:
        """Count one more connection; False where that is one too many."""
        self.open[address] += 1
        if self.per_address is None:
            allowed = self.in_all if address.startswith(LOOPBACK) else max(1, self.in_all // 2)
        else:
            allowed = self.per_address
        return self.open[address] <= allowed and self.open.total() <= self.in_all

    def give_back(self, address: str) -> None:
        """A connection has ended."""
        self.open[address] -= 1
        if not self.open[address]:
            del self.open[address]


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits. `limits` is set by `protocol_with`."""

    limits: ConnectionLimits

    # Of the request that is being read
    _stage = "idle"  # idle: between two requests, or in the headers as kept in _head; head: in those of a pipelined one
    _head = b""
    _message_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _address: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; refuse it where there are too many."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if self.limits.take(self._address):
            self._head_timer = self.loop.call_later(HEADER_SECONDS, self._head_timeout)
        else:
            self._refuse(503, "too_many_connections", "too many connections from this address, or in all")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._address is not None:
            self.limits.give_back(self._address)
            self._address = None
        self._cancel_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand data to the parser, headers only when they are complete."""
        if self.transport.is_closing():
            return
        if self._stage == "idle":
            whole_head = self._take_head(data)
            if whole_head is None:
                return
            data = whole_head
        self._message_bytes += len(data)
        if self._message_bytes > (MAX_MESSAGE_BYTES if self._stage != "head" else MAX_HEADER_BYTES):
            self._refuse(413, "request_too_large", "the request is too large")
            return
        super().data_received(data)

    def _take_head(self, data: bytes) -> bytes | None:
        """The data with complete headers, without `Upgrade`; None where they are not complete yet."""
        data = self._head + data if self._head else data
        end = data.find(b"\r\n\r\n")
        if (len(data) if end < 0 else end) > MAX_HEADER_BYTES:
            self._refuse(431, "headers_too_large", f"the headers are larger than {MAX_HEADER_BYTES:,} bytes")
            return None
        if end < 0:
            self._head = data
            self._unset_keepalive_if_required()
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEADER_SECONDS, self._head_timeout)
            return None
        self._head = b""
        self._cancel_head_timer()
        if UPGRADE_HEADER.search(data, 0, end):
            data = UPGRADE_HEADER.sub(b"", data[:end]) + data[end:]
        return data

    def on_message_begin(self) -> None:
        """A request begins: the one whose headers are complete, or one behind it in the same data."""
        self._stage = "head"
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers behind a body are dropped."""
        if self._stage == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request; the bytes of its body are counted from here."""
        self._stage = "body"
        self._message_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole; headers come next."""
        self._stage = "idle"
        self._message_bytes = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """CONNECT, or an `Upgrade` in a pipelined request: nothing behind it may run as a request."""
        self._refuse(400, "invalid_request", "no other protocol is spoken here")

    def _head_timeout(self) -> None:
        self._head_timer = None
        if self._head:
            self._refuse(408, "request_timeout", f"the headers did not arrive within {HEADER_SECONDS:g} s")
        else:
            self.transport.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer without the application, and end the connection."""
        if self.cycle is None or self.cycle.response_complete:
            body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}}).encode()
            head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self._cancel_head_timer()
        self._head = b""
        self.transport.close()


def protocol_with(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol as a class that uvicorn takes, with these limits."""
    return type("EndpointProtocol", (BoundedProtocol,), {"limits": limits})
