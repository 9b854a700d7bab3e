"""What clients do wrong, many of them at once, and how the endpoint ends."""

import json
import logging
import socket

import httpx
import openai
import pytest
from openai_server import Answer, stream_of
from routing_endpoint import (
    PATIENCE,
    endpoint,
    refused,
    says_its_name,
    text_of,
    text_of_stream,
    user,
    wait_until,
)

from inference.endpoint import bodies


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 200_000, 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"{}", 400, "`model` is missing"),
        (b'{"model": ["router"]}', 400, "`model` is missing or not a string"),
        (b'{"model": "router"}', 400, "`messages` is missing"),
        (b'{"model": "router", "messages": "hi"}', 400, "`messages` is missing or not a list"),
        (b'{"model": "router", "messages": [3]}', 400, "a list of messages"),
        (b'{"model": "router", "messages": [{"content": "hi"}]}', 400, "a list of messages"),
        (b'{"model": "router", "messages": [{"role": "user", "content": 3}]}', 400, "a list of messages"),
        (b'{"model": "router", "messages": [{"role": "user", "content": ["hi"]}]}', 400, "a list of messages"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused_in_openais_form(routed, upstream, raw, status, message):
    response = routed.post(raw)
    assert response.status_code == status and message in response.json()["error"]["message"]
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert upstream.bodies == []
    assert routed.ask().status_code == 200


def test_odd_requests_are_answered_with_what_is_wrong(routed, monkeypatch):
    assert routed.post(b"{}", **{"content-type": "text/plain"}).status_code == 415
    assert routed.post(b"{}", **{"content-encoding": "gzip"}).status_code == 415
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1000)
    assert routed.post(b'{"a": "%s"}' % (b"x" * 1000)).status_code == 413
    there = routed.get("/v1/completions")
    assert there.status_code == 404 and "POST /v1/chat/completions" in there.json()["error"]["message"]
    assert "--other_paths" in there.json()["error"]["message"]
    assert routed.get("/v1/chat/completions").status_code == 405
    lone = json.dumps({"model": "router", "messages": [user("\ud800 apple")]})
    assert routed.post(lone).status_code == 200


def test_a_client_that_never_ends_its_request_is_let_go(router, upstream, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SILENCE_SECONDS", 0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"content-length: 99\r\n\r\n{"
    with endpoint(router, upstream) as running:
        assert running.raw(head).startswith(b"HTTP/1.1 408")
        with socket.create_connection(("127.0.0.1", running.port), PATIENCE) as client:
            client.sendall(head)
        wait_until(lambda: running.get("/health").json()["in_flight"] == 0)


@pytest.mark.parametrize("started", [False, True], ids=["before the first byte", "in a stream"])
def test_a_client_that_leaves_ends_the_work_upstream(routed, upstream, caplog, started):
    caplog.set_level(logging.INFO, "router")
    upstream.behave = lambda *_: stream_of("one two", hold=True) if started else Answer(delay=60)
    if started:
        stream = routed.ask(stream=True).parse()
        next(stream)
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            routed.ask(timeout=0.3)
    wait_until(lambda: upstream.left == 1)
    wait_until(lambda: "error=client_gone" in caplog.text)
    assert routed.get("/health").json()["in_flight"] == 0 and len(upstream.bodies) == 1
    upstream.behave = says_its_name
    assert text_of(routed.ask()) == "I am small"


def test_a_client_that_leaves_at_a_streams_last_event_has_its_answer(routed, upstream, caplog):
    caplog.set_level(logging.INFO, "router")
    whole = b"".join(stream_of("one two").pieces)
    upstream.behave = lambda *_: Answer(pieces=[whole, b": it goes on\n\n"], hold=True)
    stream = routed.ask(stream=True).parse()
    assert text_of_stream(stream) == "one two"
    stream.close()
    wait_until(lambda: upstream.left == 1)
    wait_until(lambda: "status=200" in caplog.text)
    assert "error" not in caplog.text


def test_beyond_the_bound_there_is_a_429(router, upstream):
    upstream.behave = lambda *_: stream_of("one two", hold=True)
    with endpoint(router, upstream, max_in_flight=2) as running:
        streams = [running.ask(stream=True).parse() for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="too many requests") as caught:
            running.ask()
        assert caught.value.response.headers["retry-after"] == "1" and len(upstream.bodies) == 2
        assert running.get("/health").json()["in_flight"] == 2
        upstream.release()
        assert [text_of_stream(stream) for stream in streams] == ["one two"] * 2
        wait_until(lambda: running.get("/health").json()["in_flight"] == 0)
        assert running.ask(stream=True).status_code == 200


def test_stopping_lets_the_answers_under_way_end_or_breaks_them_after_the_grace(router, upstream):
    upstream.behave = lambda *_: stream_of("one two", hold=True)
    with endpoint(router, upstream, grace=0.3) as running:
        stream = running.ask(stream=True).parse()
        next(stream)
        running.stop()
        with pytest.raises((openai.APIError, httpx.TransportError)):
            list(stream)
    wait_until(lambda: upstream.left == 1)

    with endpoint(router, upstream) as running:
        stream = running.ask(stream=True).parse()
        next(stream)
        running.server.should_exit = True
        wait_until(lambda: refused(running.address))
        upstream.release()
        assert text_of_stream(stream) == "one two"
