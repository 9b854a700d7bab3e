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
    for origin in ("null", "http://[::1", "http://evil.example:x", "https://localhost.evil.example"):
        assert ask(guarded, host=host, origin=origin)[0]["status"] == 421


def test_beyond_this_machine_any_name_is_answered():
    assert ask(Guard(application, None), host="router.example", origin="https://router.example")[0]["status"] == 200


def test_a_body_without_end_is_refused_before_it_is_read():
    guarded = Guard(application, None)
    assert ask(guarded, content_length=str(guard.MAX_BODY_BYTES))[0]["status"] == 200
    for headers in ({"content_length": "64000001"}, {"transfer_encoding": "chunked"}, {"content_length": "x"}):
        assert ask(guarded, "/gradio_api/queue/join", **headers)[0]["status"] == 413


def test_no_path_steers_the_terminal_where_gradio_prints_it():
    assert ask(Guard(application, None), "/gradio_api/custom_component/\x1b[2J/x/y/z")[0]["status"] == 400
    assert ask(Guard(application, None), "/gradio_api/file=ä b.txt")[0]["status"] == 200


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


def test_who_writes_another_address_into_each_login_waits_all_the_same(monkeypatch):
    delays = []

    async def sleep(seconds):
        delays.append(seconds)

    monkeypatch.setattr(guard.asyncio, "sleep", sleep)
    guarded = Guard(application, None)
    for i in range(4):
        ask(guarded, "/login", client=f"10.0.0.{i}", x_forwarded_for=f"10.0.0.{i}", password="wrong")
    assert delays == [1, 2, 4]


def test_what_is_remembered_of_logins_is_bounded(monkeypatch):
    monkeypatch.setattr(guard, "MAX_ADDRESSES", 5)
    guarded = Guard(application, None)
    for i in range(20):
        ask(guarded, "/login", client=f"10.0.0.{i}", password="wrong")
    assert len(guarded._failures) <= 5 and len(guarded._turns) <= 1
