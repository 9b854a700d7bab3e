"""Which model a request goes to, and that nothing else of it or of its answer is touched."""

import gzip
import json
import threading

import openai
import pytest
from conftest import EASY
from openai_server import Answer, completion, stream_of
from routing_endpoint import (
    EASY_PROMPT,
    HARD_PROMPT,
    INFERIOR_KEY,
    PICTURE,
    SUPERIOR_KEY,
    endpoint,
    headers_of_decision,
    text_of,
    text_of_stream,
    user,
    wait_until,
)


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
    label = f"ROUTE_TO_{side.upper()}"
    expected = {"model": side, "upstream-model": model, "label": label, "score": f"{score:.6f}", "threshold": "0.5"}
    assert headers_of_decision(response.headers) == expected | {"truncated": "false"}

    stream = routed.ask(prompt, stream=True)
    assert headers_of_decision(stream.headers)["model"] == side
    assert text_of_stream(stream.parse()) == f"I am {model}"


def test_the_name_of_the_model_carries_a_threshold_or_a_choice(routed, upstream):
    for model, prompt, side, threshold in (
        ("router-0.0001", EASY_PROMPT, "superior", "0.0001"),
        ("router-1", HARD_PROMPT, "inferior", "1"),
        ("router-0.5", EASY_PROMPT, "inferior", "0.5"),
    ):
        told = routed.decision(prompt, model)
        assert (told["model"], told["threshold"]) == (side, threshold)
    for side, prompt in (("inferior", HARD_PROMPT), ("superior", EASY_PROMPT)):
        told = routed.decision(prompt, side)
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
        assert running.decision()["model"] == "superior"
        assert running.decision(model="router-0.5")["model"] == "inferior"


def test_only_what_the_user_says_decides(routed):
    system = {"role": "system", "content": f"{HARD_PROMPT} " * 20}
    assert routed.decision([system, user(EASY_PROMPT)])["model"] == "inferior"
    parts = [PICTURE, {"type": "text", "text": HARD_PROMPT}]
    assert routed.decision([user(parts)])["model"] == "superior"
    dialogue = [user(HARD_PROMPT), {"role": "assistant", "content": "yes"}, user("please")]
    assert routed.decision(dialogue)["model"] == "superior"
    for nothing in ([system], [user(" ")], [user(parts[:1])]):
        assert routed.decision(nothing) == {
            "model": "superior", "upstream-model": "large", "reason": "nothing to score"
        }  # fmt: skip


def test_a_long_prompt_is_routed_and_the_cut_told(routed):
    assert routed.decision(" ".join(EASY * 30))["truncated"] == "true"
    assert routed.decision(" ".join(EASY * 30_000))["truncated"] == "true"


def test_only_a_short_prompt_that_is_alone_is_scored_by_the_thread_that_answers_all(router, upstream, monkeypatch):
    threads, decide = [], router.decide

    def noted(*inputs):
        threads.append(threading.current_thread())
        return decide(*inputs)

    monkeypatch.setattr(router, "decide", noted)
    upstream.behave = lambda prompt, nth, body: stream_of("one two", hold=True) if body.get("stream") else completion()
    with endpoint(router, upstream) as running:
        running.ask()
        running.ask(" ".join(EASY * 300))
        stream = running.ask(f"{EASY_PROMPT} please", stream=True).parse()
        running.ask(f"{EASY_PROMPT} and")  # while a stream is passed on
        upstream.release()
        assert text_of_stream(stream) == "one two"
    assert [thread is running.thread for thread in threads] == [True, False, True, False]


def test_replicas_agree_and_keep_nothing_between_requests(router, upstream):
    dialogue = [user(EASY_PROMPT), {"role": "assistant", "content": "yes"}, user("and the door")]
    with endpoint(router, upstream) as one, endpoint(router, upstream) as other:
        first = one.decision(dialogue)
        for between in (HARD_PROMPT, [user(HARD_PROMPT), *dialogue]):
            other.decision(between)
        assert other.decision(dialogue) == one.decision(dialogue) == first


def test_the_request_arrives_as_it_was_sent(routed, upstream):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    fields = {"tools": [tool], "response_format": schema, "temperature": 0.3, "seed": 7, "logit_bias": {"5": -100}}
    messages = [user([{"type": "text", "text": EASY_PROMPT}, PICTURE])]
    more = {"extra_headers": {"traceparent": "00-1-2-01"}, "extra_query": {"api-version": "2026-01"}}
    routed.ask(messages, extra_body={"of_this_provider": {"a": [1, None]}}, **fields, **more)
    assert upstream.bodies[-1] == fields | {
        "model": "small", "messages": messages, "of_this_provider": {"a": [1, None]}
    }  # fmt: skip
    assert upstream.paths[-1] == "/v1/chat/completions?api-version=2026-01"
    head = upstream.headers[-1].lower()
    assert (
        "user-agent: openai/python" in head and "traceparent: 00-1-2-01" in head and "x-stainless-lang: python" in head
    )
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
        '{"mod\\u0065l": "router", "messages": %s, "metadata": {"model": "x"}}',
        '{"note": "\u00e4\u6f22\U0001f600", "model": "router", "messages": %s}',
        '\ufeff{"model": "router", "messages": %s}',
    ],
)
def test_another_model_in_the_body_is_not_mistaken_for_it(routed, upstream, raw):
    raw %= json.dumps([user(EASY_PROMPT)])
    assert routed.post(raw.encode()).status_code == 200
    start = raw.index('"router"', raw.index('l": "router", "mess'))
    assert upstream.payloads[-1].decode() == raw[:start] + '"small"' + raw[start + len('"router"') :]


def test_the_answer_comes_as_it_was_given(routed, upstream):
    body = b'{ "choices" : [ ],\n "made_up": 1.0 }'
    headers = {"x-request-id": "r1", "openai-version": "v", "x-router-model": "forged", "keep-alive": "timeout=9"}
    upstream.behave = lambda *_: Answer(body, headers=headers | {"content-type": "application/json; charset=x"})
    response = routed.ask()
    assert response.content == body and response.headers["x-request-id"] == "r1"
    assert response.headers["openai-version"] == "v" and "keep-alive" not in response.headers
    assert response.headers.get_list("x-router-model") == ["inferior"]


def test_a_compressed_answer_stays_compressed(routed, upstream):

    body = gzip.compress(json.dumps(completion("squeezed").body).encode())
    upstream.behave = lambda *_: Answer(body, headers={"content-encoding": "gzip"})
    assert text_of(routed.ask()) == "squeezed"
    assert int(routed.ask().headers["content-length"]) == len(body)


def test_a_stream_comes_piece_by_piece(routed, upstream):
    upstream.behave = lambda *_: stream_of("one two three", hold=True)
    stream = routed.ask(stream=True, stream_options={"include_usage": True}).parse()
    assert next(stream).choices[0].delta.role == "assistant"  # while the upstream has not said the rest
    assert upstream.bodies[-1]["stream_options"] == {"include_usage": True}
    wait_until(lambda: upstream.held == 1)
    upstream.release()
    assert text_of_stream(stream) == "one two three"
