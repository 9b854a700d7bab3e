"""What goes wrong at the models: what is mended, and what the client is told."""

import gzip
import json
import logging
import os

import httpx
import openai
import pytest
from openai_server import Answer, completion, error, stream_of
from routing_endpoint import (
    EASY_PROMPT,
    HARD_PROMPT,
    INFERIOR_KEY,
    PICTURE,
    SUPERIOR_KEY,
    broken,
    endpoint,
    headers_of_decision,
    nobody,
    says_its_name,
    text_of,
    text_of_stream,
    user,
    wait_until,
)

from inference.endpoint import upstreams
from inference.endpoint.upstreams import Upstream
from router_data import InputError

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
    assert headers_of_decision(response.headers).items() >= {
        "model": "superior", "upstream-model": "large", "fallback": f"inferior: {why}"
    }.items()  # fmt: skip
    assert [body["model"] for body in upstream.bodies] == ["small", "small", "large"]
    assert f"bearer {SUPERIOR_KEY}" in upstream.headers[-1].lower() and INFERIOR_KEY not in upstream.headers[-1]

    stream = routed.ask(stream=True)
    assert text_of_stream(stream.parse()) == "I am large" and "fallback" in headers_of_decision(stream.headers)
    assert routed.metrics()["router_fallbacks_total{superior}"] == 2


def test_an_inferior_model_that_is_not_there_or_hangs_is_replaced(router, upstream):
    with endpoint(router, urls=(nobody(), upstream.url)) as running:
        assert running.decision()["fallback"] == "inferior: connection failed"
    upstream.behave = broken("small", by=Answer(delay=60))
    with endpoint(router, upstream, timeout=0.3) as running:
        assert running.decision()["fallback"] == "inferior: timeout"
    assert [body["model"] for body in upstream.bodies[-2:]] == ["small", "large"]  # another try would hang as long
    wait_until(lambda: upstream.left == 1)


def test_a_fault_that_passes_is_mended_by_another_try(router, upstream):
    upstream.behave = lambda prompt, nth, body: error(503) if nth < 3 else completion("at last")
    with endpoint(router, upstream, retries=2) as running:
        response = running.ask()
    assert text_of(response) == "at last" and "fallback" not in headers_of_decision(response.headers)
    assert [body["model"] for body in upstream.bodies] == ["small"] * 3


def test_the_wait_that_an_upstream_asks_for_is_kept_or_the_other_model_asked(routed, upstream):
    upstream.behave = broken("small", by=error(429, retry_after_ms="200"))
    routed.ask()
    assert upstream.times[1] - upstream.times[0] >= 0.2
    upstream.behave = broken("small", by=error(429, retry_after="60"))
    assert routed.decision(f"{EASY_PROMPT} please")["fallback"] == "inferior: status 429"
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
        assert headers_of_decision(response.headers)["fallback"] == "superior: status 500"
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


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422])
def test_what_the_inferior_model_cannot_take_goes_to_the_superior(routed, upstream, status):
    upstream.behave = broken("small", by=error(status, "context_length_exceeded", "too long"))
    response = routed.ask()
    assert text_of(response) == "I am large"
    assert headers_of_decision(response.headers)["fallback"] == f"inferior: status {status}"
    assert [body["model"] for body in upstream.bodies] == ["small", "large"]  # another try would fail alike
    assert routed.metrics()[f"router_upstream_failures_total{{status {status},inferior}}"] == 1


@pytest.mark.parametrize("model", ["inferior", "superior", "router"])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_of_the_last_model_is_the_answer(routed, upstream, model, status):
    upstream.behave = lambda *_: error(status, "context_length_exceeded", "too long", "messages", x_request_id="r1")
    with pytest.raises(openai.APIStatusError, match="too long") as caught:
        routed.ask(HARD_PROMPT, model)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (
        status, "context_length_exceeded", "messages"
    )  # fmt: skip
    assert caught.value.request_id == "r1" and len(upstream.bodies) == 1


@pytest.mark.parametrize("status", [401, 402, 403])
def test_the_routers_own_key_is_the_operators_affair(routed, upstream, caplog, status):
    caplog.set_level(logging.INFO, "router")
    upstream.behave = broken("small", by=error(status, "invalid_api_key", f"wrong key {INFERIOR_KEY}"))
    response = routed.ask()
    assert text_of(response) == "I am large"
    assert headers_of_decision(response.headers)["fallback"] == f"inferior: status {status}"
    assert "refuses the router's own key" in caplog.text  # mended, but not in silence
    with pytest.raises(openai.InternalServerError, match="look at INFERIOR_API_KEY") as caught:
        routed.ask(model="inferior")
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_refused_key")
    upstream.behave = broken("large", by=error(status))
    with pytest.raises(openai.InternalServerError, match="look at SUPERIOR_API_KEY"):
        routed.ask(HARD_PROMPT)
    assert routed.metrics()["router_errors_total{upstream_refused_key}"] == 2
    assert INFERIOR_KEY not in caplog.text


def test_a_model_that_is_not_there_is_the_operators_affair(routed, upstream):
    upstream.behave = lambda *_: error(404, "model_not_found")
    with pytest.raises(openai.InternalServerError, match="INFERIOR_MODEL and INFERIOR_BASE_URL.*LiteLLM") as caught:
        routed.ask(model="inferior")
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_not_found")


def sse(*events: dict | str) -> Answer:
    return Answer(pieces=[b"data: %s\n\n" % (e if isinstance(e, str) else json.dumps(e)).encode() for e in events])


NO_ANSWERS = {
    "empty": (Answer(b""), "empty answer"),
    "white space": (Answer(b" \n"), "empty answer"),
    "a page": (Answer(b"<html>", headers={"content-type": "text/html; charset=utf-8"}), "a page of HTML"),
    "an error": (Answer({"error": {"message": "overloaded"}}), "an error as its answer"),
    "Anthropic's error": (Answer({"type": "error", "error": {"type": "overloaded_error"}}), "an error as its answer"),
    "an error event": (sse({"error": {"message": "overloaded", "code": 529}}), "an error as its answer"),
    "behind a comment": (
        Answer(pieces=[b": processing\n\n", b'data: {"id": "x", "error": "no"}\n\n']), "an error as its answer"
    ),
    "in two pieces": (Answer(pieces=[b'data: {"err', b'or": "no"}\n\n']), "an error as its answer"),
    "a failed response": (
        sse({"type": "response.failed", "response": {"error": {"message": "no"}}}), "an error as its answer"
    ),
    "only its end": (sse("[DONE]"), "an error as its answer"),
    "a redirect": (Answer(b"", 301, headers={"location": "http://127.0.0.1:9/"}), "status 301"),
    "a status above 599": (Answer(b"x", 799), "status 799"),
}  # fmt: skip


@pytest.mark.parametrize("fault", NO_ANSWERS)
def test_a_success_without_an_answer_is_none(routed, upstream, fault):
    answer, reason = NO_ANSWERS[fault]
    upstream.behave = broken("small", by=answer)
    response = routed.ask()
    assert text_of(response) == "I am large"
    assert headers_of_decision(response.headers)["fallback"] == f"inferior: {reason}"
    assert routed.metrics()[f"router_upstream_failures_total{{{reason},inferior}}"] == 1
    with pytest.raises(openai.InternalServerError) as caught:
        routed.ask(model="inferior")
    assert caught.value.status_code == 502


def test_an_error_within_an_answer_is_the_clients_to_read(routed, upstream):
    body = {"choices": [{"message": {"content": "x"}}], "error": None}
    for answer in (body, body | {"error": {"message": "partly"}}, {"note": 'an "error" in a text'}):
        upstream.behave = lambda *_, answer=answer: Answer(answer)
        assert routed.ask().http_response.json() == answer
    late = [{"choices": [{"delta": {"content": "x"}}]}, {"error": {"message": "cut"}}]
    upstream.behave = lambda *_: sse(*late)
    assert b"cut" in routed.post({"model": "router", "messages": [user(EASY_PROMPT)], "stream": True}).content


def test_a_streams_first_comments_wait_for_an_event_but_not_for_long(routed, upstream, monkeypatch):
    monkeypatch.setattr(upstreams, "FIRST_EVENT_SECONDS", 0.2)
    upstream.behave = lambda *_: Answer(pieces=[b": processing\n\n", *stream_of("one two").pieces], hold=True)
    with routed.client.chat.completions.with_streaming_response.create(
        model="router", messages=[user(EASY_PROMPT)], stream=True
    ) as response:
        lines = response.iter_lines()
        assert next(lines) == ": processing"  # so that the client does not give up
        upstream.release()
        assert "one" in "".join(lines)


def test_the_upstreams_key_never_reaches_the_client(routed, upstream):
    said = f"Incorrect API key provided: Bearer {SUPERIOR_KEY}"
    body = json.dumps({"error": {"message": said}}).encode()
    for answer in (
        Answer(body, 400, {"x-note": said}),
        Answer(gzip.compress(body), 400, {"content-encoding": "gzip"}),
        Answer(pieces=[body[:60], body[60:]], status=400),
        Answer(body * 3, 500, {"content-encoding": "br"}),
    ):
        upstream.behave = lambda *_, answer=answer: answer
        response = routed.post({"model": "superior", "messages": []})
        assert response.status_code == answer.status and SUPERIOR_KEY not in response.text + str(response.headers)
        assert "br" in answer.headers.values() or "Bearer ***" in response.text
    upstream.behave = lambda *_: Answer({"error": {"message": said}})
    assert SUPERIOR_KEY not in routed.post({"model": "superior", "messages": []}).text


def test_headers_for_browsers_and_of_other_hops_stay_away_from_the_client(routed, upstream):
    dropped = {
        "set-cookie": "a=b", "clear-site-data": "*", "strict-transport-security": "max-age=1", "refresh": "0",
        "access-control-allow-origin": "*", "alt-svc": "h3", "x-router-model": "forged", "location": "http://x",
    }  # fmt: skip
    upstream.behave = lambda *_: Answer(completion().body, headers=dropped | {"x-ratelimit-remaining": "9"})
    headers = routed.ask().headers
    assert not {name for name in dropped if name != "x-router-model"} & set(headers)
    assert headers["x-ratelimit-remaining"] == "9"


SECRET_HEADERS = (
    "authorization api-key x-api-key cookie proxy-authorization x-forwarded-access-token x-auth-request-access-token "
    "cf-access-jwt-assertion x-amzn-oidc-data x-goog-api-key ocp-apim-subscription-key x-forwarded-for "
    "x-http-method-override openai-organization openai-project x-fake-inferior"
).split()


def test_only_headers_of_the_content_the_sdk_and_traces_go_on(router, upstream):
    kept = {
        "user-agent": "x/1", "openai-beta": "b", "idempotency-key": "k", "traceparent": "00-1", "tracestate": "t",
        "x-stainless-lang": "js", "anthropic-beta": "b", "accept": "a",
    }  # fmt: skip
    secrets = dict.fromkeys(SECRET_HEADERS, "of-the-client")
    raw = {"model": "router", "messages": [user(EASY_PROMPT)]}
    with endpoint(router, upstream, forward_headers=frozenset({"x-tenant"})) as running:
        assert running.post(raw, **kept | secrets | {"x-tenant": "9", "connection": "openai-beta"}).status_code == 200
    head = upstream.headers[-1].lower()
    assert "of-the-client" not in head and "openai-beta" not in head and "x-tenant: 9" in head
    assert all(f"{name}: {value}" in head for name, value in kept.items() if name != "openai-beta")
    assert head.count("authorization: bearer ") == 1


def test_answers_come_in_an_encoding_that_can_be_looked_at(routed, upstream):
    routed.post({"model": "superior", "messages": []}, **{"accept-encoding": "br, gzip;q=0.5, zstd"})
    assert "accept-encoding: gzip;q=0.5\r\n" in upstream.headers[-1].lower()


def test_what_the_inferior_model_is_known_not_to_take_spares_the_failed_call(router, upstream):
    inferior = {"inputs": frozenset({"text", "tools"}), "max_input_tokens": 1000}
    text = {"type": "text", "text": EASY_PROMPT}
    with endpoint(router, upstream, inferior=inferior) as running:
        for messages, reason in (
            ([user([text, PICTURE])], "inferior takes no image"),
            ([{"role": "system", "content": "x" * 8000}, user(EASY_PROMPT)], "inferior takes 1000 tokens"),
        ):
            found = running.decision(messages)
            assert (found["model"], found["reason"], found["label"]) == ("superior", reason, "ROUTE_TO_INFERIOR")
        assert running.decision(EASY_PROMPT)["model"] == "inferior"
        assert running.decision([user([text, PICTURE])], "inferior")["model"] == "inferior"  # the client's own choice
    assert [body["model"] for body in upstream.bodies] == ["large", "large", "small", "small"]


def test_the_variables_of_an_upstream(monkeypatch):
    for name in os.environ:
        if name.startswith(("INFERIOR_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INFERIOR_MODEL", "claude")
    monkeypatch.setenv("INFERIOR_BASE_URL", "https://api.anthropic.com/v1/")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant")
    monkeypatch.setenv("INFERIOR_INPUTS", "text, Image")
    monkeypatch.setenv("INFERIOR_MAX_INPUT_TOKENS", "8000")
    found = Upstream.from_environment("inferior")
    assert (found.api_key, found.base_url) == ("sk-ant", "https://api.anthropic.com/v1")
    assert (found.inputs, found.max_input_tokens) == (frozenset({"text", "image"}), 8000)
    assert not found.sends_key_in_clear
    for variable, value in (("INFERIOR_INPUTS", "smell"), ("INFERIOR_MAX_INPUT_TOKENS", "many")):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=variable):
            patch.setenv(variable, value)
            Upstream.from_environment("inferior")
    for url, in_clear in (
        ("http://203.0.113.7/v1", True), ("http://vllm:8000/v1", True), ("http://127.0.0.2:1/v1", False),
        ("http://127.example.com/v1", True),
        ("http://localhost/v1", False), ("http://[::1]:8000/v1", False), ("https://203.0.113.7/v1", False),
    ):  # fmt: skip
        assert Upstream("inferior", "m", url, "k").sends_key_in_clear == in_clear
