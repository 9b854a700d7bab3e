"""Who may use the page: foreign hosts and origins are refused, forwarded requests are not local, guessing is slow."""

import asyncio

import pytest

from inference.page import guard
from inference.page.guard import LOOPBACK_NAMES, Guard, host_name, is_local_request


async def application(scope, receive, send):
    status = 200 if scope["path"] != "/login" or scope["headers"][-1][1] == b"right" else 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(app, path="/", kind="http", client="127.0.0.1", **headers: str):
    """The messages that a request is answered with."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": "POST", "path": path, "headers": encoded, "client": (client, 1)}
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:7860", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:7860", "::1"),
        ("LocalHost", "localhost"),
        ("evil.example", "evil.example"),
        ("", ""),
        ("[::1", ""),
        ("localhost@evil.example", "evil.example"),
    ],
)
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_rebound_name_is_refused_on_every_route(host, kind):
    sent = ask(Guard(application, LOOPBACK_NAMES), "/gradio_api/upload", kind, host=host)
    assert (sent[0].get("status"), sent[0].get("code")) == ((421, None) if kind == "http" else (None, 1008))


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "page.example"])
def test_local_names_and_those_of_the_flag_are_answered(host):
    guarded = Guard(application, [*LOOPBACK_NAMES, "page.example"])
    assert ask(guarded, host=host)[0]["status"] == 200
    assert ask(guarded, host=host, origin=f"http://{host}")[0]["status"] == 200
    assert ask(guarded, host=host, origin="https://evil.example")[0]["status"] == 421
    assert ask(guarded, host=host, origin="null")[0]["status"] == 421


def test_beyond_this_machine_any_name_is_answered():
    assert ask(Guard(application, None), host="router.example", origin="https://router.example")[0]["status"] == 200


@pytest.mark.parametrize(
    ("headers", "client", "is_local"),
    [
        ({"host": "localhost:7860"}, "127.0.0.1", True),
        ({"host": "[::1]:7860"}, "::1", True),
        ({"host": "localhost:7860"}, "192.168.0.7", False),
        ({"host": "page.example"}, "127.0.0.1", False),
        ({"host": "localhost", "x-forwarded-for": "8.8.8.8"}, "127.0.0.1", False),
        ({"host": "localhost", "forwarded": "for=8.8.8.8"}, "127.0.0.1", False),
        ({"host": "localhost"}, None, False),
    ],
)
def test_only_a_direct_request_of_this_machine_is_local(headers, client, is_local):
    assert is_local_request(headers, client) == is_local


def test_each_failed_login_delays_the_next_and_is_reported(monkeypatch, capsys):
    delays = []

    async def sleep(seconds):
        delays.append(seconds)

    monkeypatch.setattr(guard.asyncio, "sleep", sleep)
    guarded = Guard(application, None)
    for _ in range(7):
        assert ask(guarded, "/login", password="wrong")[0]["status"] == 400
    assert delays == [1, 2, 4, 8, 16, 30]
    assert "login failed, 7 in a row from 127.0.0.1" in capsys.readouterr().err
    assert ask(guarded, "/login", client="10.0.0.9", password="wrong")[0]["status"] == 400
    assert len(delays) == 6  # another address has not failed yet
    assert ask(guarded, "/login", password="right")[0]["status"] == 200
    delays.clear()
    ask(guarded, "/login", password="wrong")
    assert delays == []  # who knows the password starts anew
