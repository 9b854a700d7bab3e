"""HTTP before a key is checked: no smuggled request, no headers without end, no silent connections."""

import json
import socket
import time

import pytest
from openai_server import completion
from routing_endpoint import EASY_PROMPT, PATIENCE, endpoint, user, wait_until

from inference.endpoint import protocol
from inference.endpoint.protocol import ConnectionLimits

BODY = json.dumps({"model": "router", "messages": [user(EASY_PROMPT)]}).encode()


def head(
    *lines: str, method: str = "POST", path: str = "/v1/chat/completions", length: int | None = len(BODY)
) -> bytes:
    sized = [] if length is None else [f"content-length: {length}"]
    typed = ["host: localhost", "content-type: application/json", *sized, *lines]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *typed, "", ""]).encode()


UPGRADES = {
    "curl --http2": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
    "the JDK's client": ["Connection: Upgrade, HTTP2-Settings, close", "upgrade:h2c", "HTTP2-Settings: AAE"],
    "WebSocket": ["Connection: keep-alive, Upgrade", "UPGRADE: websocket"],
}


@pytest.mark.parametrize("client", UPGRADES)
@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["at once", "body later", "headers in two"])
def test_a_request_that_would_upgrade_keeps_its_body(routed, upstream, client, pieces):
    whole = head(*UPGRADES[client], "connection: close" if "close" not in UPGRADES[client][0] else "x: y") + BODY
    cut = whole.index(b"\r\n\r\n") + 4
    parts = {1: [whole], 2: [whole[:cut], whole[cut:]], 3: [whole[: cut - 30], whole[cut - 30 : cut], whole[cut:]]}
    received = routed.raw(*parts[pieces])
    assert received.startswith(b"HTTP/1.1 200") and b"I am small" in received
    assert upstream.bodies == [json.loads(BODY) | {"model": "small"}]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.slow
def test_the_body_of_such_a_request_never_runs_as_the_next_one(routed, upstream, together):
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    start = head(*UPGRADES["curl --http2"], length=len(smuggled))
    received = routed.raw(*([start + smuggled] if together else [start, smuggled]), patience=1)
    assert received.count(b"HTTP/1.1 ") == 1 and b'"object": "list"' not in received
    assert received.startswith(b"HTTP/1.1 400")


def test_an_upgrade_behind_a_pipelined_request_ends_the_connection(routed, upstream):
    first = head(method="GET", path="/health", length=None)
    second = head(*UPGRADES["curl --http2"])
    received = routed.raw(first + second, BODY, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert b'"object": "list"' not in received and upstream.bodies == []


def test_pipelined_requests_are_answered_in_their_order(routed):
    two = head() + BODY + head("connection: close", method="GET", path="/health", length=None)
    received = routed.raw(two)
    assert received.count(b"HTTP/1.1 200") == 2 and received.index(b"I am small") < received.index(b'"status": "ok"')


@pytest.mark.slow
def test_headers_without_end_are_refused(routed, upstream):
    for whole in (
        head(f"x-large: {'a' * 200_000}") + BODY,
        b"GET /" + b"a" * 200_000,
        head(*[f"x-{i}: y" for i in range(20_000)]) + BODY,
        head(method="GET", path="/health", length=None) + head(f"x: {'a' * 400_000}") + BODY,  # pipelined
    ):
        pieces = [whole[i : i + 20_000] for i in range(0, len(whole), 20_000)]
        received = routed.raw(*pieces)
        assert b"I am" not in received and upstream.bodies == []
    assert routed.raw(b"GET /" + b"a" * 100_000).startswith(b"HTTP/1.1 431")
    assert routed.ask().status_code == 200


@pytest.mark.slow
def test_trailers_and_framing_without_end_take_no_memory(routed, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_MESSAGE_BYTES", 300_000)
    chunked = head("transfer-encoding: chunked", length=None) + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    assert b"I am small" in routed.raw(chunked + b"x-trailer: y\r\n\r\n", patience=1)
    for endless in ([b"x-trailer: y\r\n" * 5000] * 10, [b"5;" + b"x" * 60_000] * 10):
        received = routed.raw(head("transfer-encoding: chunked", length=None), *endless)
        assert b"I am" not in received  # and the connection has ended


@pytest.mark.slow
def test_connections_that_say_nothing_or_too_little_are_closed(routed, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    started = time.monotonic()
    assert routed.raw() == b""
    assert routed.raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n").startswith(b"HTTP/1.1 408")
    drop_by_drop = [bytes([byte]) for byte in b"GET /health HTTP/1.1\r\nx: " + b"y" * 40]
    assert b" 200 " not in routed.raw(*drop_by_drop)
    kept = head(method="GET", path="/health", length=None)
    assert routed.raw(kept, b"GET /h").count(b"HTTP/1.1 ") == 2  # the next request of a connection, too
    assert time.monotonic() - started < PATIENCE


@pytest.mark.slow
def test_one_address_cannot_take_all_connections(router, upstream):
    with endpoint(router, upstream, limits=ConnectionLimits(20, per_address=5)) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        held = [socket.create_connection(("127.0.0.1", running.port), PATIENCE) for _ in range(8)]
        answers = []
        for connection in held:
            connection.settimeout(0.2)
            try:
                answers.append(connection.recv(100))
            except TimeoutError:
                answers.append(None)
        assert answers.count(None) == 5
        assert [answer[:12] for answer in answers if answer] == [b"HTTP/1.1 503"] * 3
        for connection in held:
            connection.close()
        wait_until(lambda: b" 200 " in running.raw(head(method="GET", path="/health", length=None), patience=0.5)[:20])


def test_how_many_connections_an_address_may_have():
    limits = ConnectionLimits(4)
    assert [limits.take("203.0.113.7") for _ in range(3)] == [True, True, False]
    assert limits.take("127.0.0.1")
    limits.give_back("203.0.113.7")
    assert limits.take("198.51.100.1") and not limits.take("127.0.0.1")
    for address in ("203.0.113.7", "203.0.113.7", "127.0.0.1", "127.0.0.1", "198.51.100.1"):
        limits.give_back(address)
    assert not limits.open


def test_what_is_no_http_is_refused(routed, upstream):
    for raw in (
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        head("content-length: 3") + BODY, head("transfer-encoding: chunked") + BODY, b"\x16\x03\x01" * 30 + b"\r\n\r\n",
        head("x: y\r\n folded") + BODY,
    ):  # fmt: skip
        received = routed.raw(raw, patience=2)
        assert b" 200 " not in received.split(b"\r\n")[0] and b'"object"' not in received
    assert upstream.bodies == []
    upstream.behave = lambda *_: completion("still here")
    assert routed.ask().status_code == 200
