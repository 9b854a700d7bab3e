"""The official clients of OpenAI and Anthropic ask all APIs of the endpoint, in front of a scripted server."""

import json

import anthropic
import httpx2
import openai
import pytest
from model_apis import events, message_stream, response_stream, speaks_all
from openai_server import Answer, completion, error
from routing_endpoint import (
    EASY_PROMPT,
    HARD_PROMPT,
    INFERIOR_KEY,
    OWN_KEY,
    PATIENCE,
    SUPERIOR_KEY,
    broken,
    endpoint,
    headers_of_decision,
    user,
)

PROMPTS = ((EASY_PROMPT, "inferior", "small"), (HARD_PROMPT, "superior", "large"))


@pytest.fixture
def all_apis(router, upstream):
    upstream.other_path = speaks_all
    with endpoint(router, upstream) as running:
        yield running


@pytest.fixture
def claude(all_apis):
    http = httpx2.Client(trust_env=False, timeout=PATIENCE)
    with (
        http,
        anthropic.Anthropic(base_url=all_apis.address, api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.mark.parametrize(("prompt", "side", "model"), PROMPTS)
def test_responses_are_routed_by_what_the_user_says(all_apis, upstream, prompt, side, model):
    client = all_apis.client
    items = [{"role": "developer", "content": f"{HARD_PROMPT} " * 9}, {"role": "user", "content": prompt}]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": prompt}]}]
    for conversation in (
        prompt,
        items,
        [{"type": "function_call_output", "call_id": "c", "output": HARD_PROMPT}, *parts],
    ):
        raw = client.responses.with_raw_response.create(model="router", input=conversation, instructions=HARD_PROMPT)
        assert raw.headers["x-router-model"] == side and raw.parse().output_text == f"I am {model}"
    assert upstream.paths[-1] == "/v1/responses"
    key = INFERIOR_KEY if side == "inferior" else SUPERIOR_KEY
    assert f"authorization: bearer {key}" in upstream.headers[-1].lower()
    stream = list(client.responses.create(model="router", input=prompt, stream=True))
    assert [event.type for event in stream][:2] == ["response.created", "response.output_text.delta"]
    assert stream[-1].response.model == model


@pytest.mark.parametrize(("prompt", "side", "model"), PROMPTS)
def test_input_is_counted_and_compacted_where_it_would_be_answered(all_apis, upstream, prompt, side, model):
    responses = all_apis.client.responses
    counted = responses.input_tokens.with_raw_response.count(model="router", input=prompt)
    assert counted.headers["x-router-model"] == side and counted.parse().input_tokens == 7
    compacted = responses.compact(model="router", input=[{"role": "user", "content": prompt}])
    assert compacted.output[0].encrypted_content == f"I am {model}"
    assert upstream.paths == ["/v1/responses/input_tokens", "/v1/responses/compact"]
    assert not [name for name in all_apis.metrics() if name.startswith("router_decisions_total")]  # nobody answered


def test_a_responses_bytes_pass_as_they_are(all_apis, upstream):
    for path, raw, answer in (
        ("/v1/responses", b'{ "stream":true,\n "input":"the apple", "model" : "router" }',
         response_stream("small", "I am small")),
        ("/v1/messages", b'{"stream":true,"messages":[{"role":"user","content":"the apple"}],"model":"router"}',
         message_stream("small", "I am small")),
    ):  # fmt: skip
        received = all_apis.post(raw, path)
        assert received.content == b"".join(answer.pieces)
        assert received.headers["content-type"] == "text/event-stream"
    # without /v1, and with a slash behind
    for path in ("/responses", "/v1/responses/", "/chat/completions/", "/messages"):
        assert all_apis.post(
            {"model": "router", "input": "the apple", "messages": [user("the apple")]}, path
        ).is_success


@pytest.mark.parametrize(("prompt", "side", "model"), PROMPTS)
def test_messages_are_routed_by_what_the_user_says(claude, upstream, prompt, side, model):
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": HARD_PROMPT}]}
    use = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    reminder = {"type": "text", "text": f"<system-reminder>{HARD_PROMPT}</system-reminder>"}
    loop = [user([reminder, {"type": "text", "text": prompt}]), {"role": "assistant", "content": [use]}, user([result])]
    for messages in ([user(prompt)], loop):
        raw = claude.messages.with_raw_response.create(
            model="router", max_tokens=9, messages=messages, system=HARD_PROMPT
        )
        assert raw.headers["x-router-model"] == side and raw.parse().content[0].text == f"I am {model}"
    head = upstream.headers[-1].lower()
    key = INFERIOR_KEY if side == "inferior" else SUPERIOR_KEY
    assert f"x-api-key: {key}" in head and "anthropic-version: 20" in head
    assert head.count("x-api-key:") == head.count("authorization:") == 1
    with claude.messages.stream(model="router", max_tokens=9, messages=[user(prompt)]) as stream:
        assert stream.get_final_text().strip() == f"I am {model}"
    counted = claude.messages.with_raw_response.count_tokens(model="router", messages=[user(prompt)])
    assert counted.headers["x-router-model"] == side and counted.parse().input_tokens == 7
    assert upstream.paths == ["/v1/messages"] * 3 + ["/v1/messages/count_tokens"]


def test_anthropics_version_is_named_where_the_client_names_none(all_apis, upstream):
    body = {"model": "inferior", "max_tokens": 9, "messages": [user("hi")]}
    assert all_apis.post(body, "/v1/messages").is_success
    assert "anthropic-version: 2023-06-01" in upstream.headers[-1].lower()
    assert all_apis.post(body, "/v1/messages", anthropic_version="2099-01-01").is_success
    assert "anthropic-version: 2099-01-01" in upstream.headers[-1].lower()


def test_errors_are_in_the_form_of_the_api_that_was_asked(router, upstream, claude, all_apis):
    with pytest.raises(anthropic.NotFoundError, match="there are router") as caught:
        claude.messages.create(model="claude-9", max_tokens=9, messages=[user("hi")])
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": caught.value.body["error"]["message"]},
    }
    for raw, kind in ((b"{", "invalid_request_error"), (b'{"model":"router"}', "invalid_request_error")):
        assert all_apis.post(raw, "/v1/messages").json()["error"]["type"] == kind
    with pytest.raises(openai.NotFoundError, match="there are router"):
        all_apis.client.responses.create(model="gpt-9", input="hi")
    with pytest.raises(openai.BadRequestError, match="`input` is missing") as caught:
        all_apis.client.post("/responses", body={"model": "router", "input": 3}, cast_to=object)
    assert caught.value.param == "input"
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        denied = running.post({"model": "router"}, "/v1/messages")
        assert denied.status_code == 401 and denied.json()["error"]["type"] == "authentication_error"
        assert running.get("/v1/models", anthropic_version="2023-06-01").json()["type"] == "error"


def test_an_upstream_that_speaks_chat_completions_only_is_a_clear_error(routed, upstream):
    upstream.other_path = lambda path, payload: None if "/chat/" in path else error(404, message="no such route")
    for path, body in (("/v1/responses", {"input": HARD_PROMPT}), ("/v1/messages", {"messages": [user(HARD_PROMPT)]})):
        failed = routed.post({"model": "router"} | body, path)
        assert failed.status_code == 502
        message = failed.json()["error"]["message"]
        assert path.removeprefix("/v1") in message and "LiteLLM" in message and "SUPERIOR_BASE_URL" in message
    counted = routed.post({"model": "router", "messages": [user(EASY_PROMPT)]}, "/v1/messages/count_tokens")
    assert counted.status_code == 404 and counted.json()["error"]["type"] == "not_found_error"


def test_where_one_model_fails_the_other_answers_in_every_api(all_apis, upstream):
    def small_is_down(path: str, payload: bytes) -> Answer | None:
        overloaded = Answer({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, 529)
        return overloaded if b'"small"' in payload else speaks_all(path, payload)

    upstream.other_path = small_is_down
    for path, body in (("/v1/responses", {"input": EASY_PROMPT}), ("/v1/messages", {"messages": [user(EASY_PROMPT)]})):
        answer = all_apis.post({"model": "router", "stream": True} | body, path)
        assert headers_of_decision(answer.headers)["fallback"] == "inferior: status 529"
        assert "large" in answer.text


def test_a_stream_whose_first_event_is_an_error_is_no_answer(all_apis, upstream):
    def first_event_fails(path: str, payload: bytes) -> Answer | None:
        failed = {"response": {"error": {"code": "server_error", "message": "no"}}}
        broken_stream = {
            "POST /responses": events(("response.failed", failed)),
            "POST /messages": events(("error", {"error": {"type": "overloaded_error", "message": "no"}})),
        }.get(path)
        return Answer(pieces=broken_stream) if broken_stream and b'"small"' in payload else speaks_all(path, payload)

    upstream.other_path = first_event_fails
    for path, body in (("/v1/responses", {"input": EASY_PROMPT}), ("/v1/messages", {"messages": [user(EASY_PROMPT)]})):
        answer = all_apis.post({"model": "router", "stream": True} | body, path)
        assert "fallback" in headers_of_decision(answer.headers) and "large" in answer.text


def test_other_paths_go_where_a_flag_says(router, upstream):
    vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "model": "e"}

    def answers(path: str, payload: bytes) -> Answer | None:
        return Answer(vectors | {"usage": {"prompt_tokens": 1, "total_tokens": 1}}) if "embeddings" in path else None

    upstream.other_path = answers
    with endpoint(router, upstream) as running, pytest.raises(openai.NotFoundError, match="--other_paths.*") as caught:
        running.client.embeddings.create(model="e", input="hi")
    assert "chat mode" in str(caught.value)
    with endpoint(router, upstream, other_paths="superior") as running:
        assert running.client.embeddings.create(model="e", input="hi").data[0].embedding == [0.5]
        assert f"bearer {SUPERIOR_KEY}" in upstream.headers[-1].lower() and upstream.paths[-1] == "/v1/embeddings"
        assert running.get("/v1/files?limit=2").status_code == 200 and upstream.paths[-1] == "/v1/files?limit=2"
        for path in ("/v1/../admin", "/v1/%2e%2e/admin", "/v1/files/..", "/v1/./files"):
            received = running.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert b" 404 " in received.split(b"\r\n")[0]
        assert "admin" not in "".join(upstream.paths)


@pytest.mark.parametrize("path", ["/v1:{port}/files", "/v1@127.0.0.1:{port}/files", "*@127.0.0.1:{port}/files"])
def test_no_path_goes_on_with_the_name_of_the_server(router, upstream, path):
    """Where an address ends in the server's name, what follows it would lead elsewhere, and the key with it."""
    request = f"GET {path.format(port=upstream.port)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with endpoint(router, urls=["http://127.0.0.1"] * 2, other_paths="superior", retries=0) as running:
        assert b" 200 " not in running.raw(request.encode()).split(b"\r\n")[0]
    assert upstream.paths == []


def test_other_names_mean_the_models_that_the_operator_says(router, upstream):
    with endpoint(
        router, upstream, aliases={"gpt-4o": "router", "gpt-4o-mini": "inferior", "o9": "router-0"}
    ) as running:
        assert running.decision(EASY_PROMPT, "gpt-4o")["score"]
        assert running.decision(HARD_PROMPT, "gpt-4o-mini")["model"] == "inferior"
        assert running.decision(EASY_PROMPT, "o9")["model"] == "superior"
        assert {"gpt-4o", "gpt-4o-mini"} <= {model.id for model in running.client.models.list()}
        assert running.client.models.retrieve("gpt-4o").id == "gpt-4o"
        http = httpx2.Client(trust_env=False)
        with http, anthropic.Anthropic(base_url=running.address, api_key="none", http_client=http) as claude:
            assert "gpt-4o" in {model.id for model in claude.models.list()}


def test_an_agents_loop_stays_on_one_model_and_is_scored_once(all_apis, claude, upstream):
    """Thirty calls on one user turn: the results of tools come as the user's turns, and none changes the route."""
    messages = [user(f"{EASY_PROMPT}<environment_details>{HARD_PROMPT}</environment_details>")]
    for call in range(15):
        raw = claude.messages.with_raw_response.create(model="router", max_tokens=9, messages=messages)
        assert raw.headers["x-router-model"] == "inferior"
        messages.append({"role": "assistant", "content": f"run {call}"})
        messages.append(user(f"[result of pytest] {HARD_PROMPT} {call}"))
    assert all_apis.metrics()["router_remembered_decisions_total{}"] == 14


def test_usage_of_every_api_stands_in_the_log(router, upstream, tmp_path):
    upstream.other_path = speaks_all
    log = tmp_path / "log.jsonl"
    with endpoint(router, upstream, decision_log=log) as running:
        for stream in (False, True):
            running.post({"model": "router", "input": EASY_PROMPT, "stream": stream}, "/v1/responses")
            running.post({"model": "router", "messages": [user(EASY_PROMPT)], "stream": stream}, "/v1/messages")
        running.post({"model": "router", "messages": [user(EASY_PROMPT)]}, "/v1/messages/count_tokens")  # no decision
        assert running.metrics()["router_decisions_total{small,router,inferior}"] == 4
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["api"] for row in rows] == ["responses", "messages"] * 2
    assert [row["usage"] for row in rows] == [{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}] * 4


def test_broken_is_broken_in_chat_completions_too(routed, upstream):
    upstream.behave = broken("small", by=completion("fine"))
    assert routed.ask().parse().choices[0].message.content == "fine"
