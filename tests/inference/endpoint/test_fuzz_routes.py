"""Whatever a stranger sends to any route is answered in JSON and in time, and the endpoint goes on serving."""

import json

import httpx
import pytest
from fuzzing import MESSAGE, VALUES, WORDS, as_json, fuzz, with_damage
from hypothesis import given
from hypothesis import strategies as st
from model_apis import speaks_all
from routing_endpoint import EASY_PROMPT, INFERIOR_KEY, PATIENCE, SUPERIOR_KEY, endpoint

pytestmark = pytest.mark.slow

PATHS = st.sampled_from(
    [
        *("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/models"),
        *("/chat/completions", "/v1/embeddings", "/v1/files/../models", "/v1/responses/resp_1", "/v1/%2e%2e/health"),
        *("/health", "/metrics", "/", "/v1", "//v1//models", "/favicon.ico"),
    ]
)
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
HEADERS = st.dictionaries(
    st.sampled_from(
        ["content-type", "accept", "authorization", "x-api-key", "origin", "anthropic-version", "traceparent",
         "content-encoding", "expect", "accept-encoding", "x-router-threshold"]
    ),
    st.sampled_from(
        ["application/json", "*/*", "Bearer x", "bearer", "", "null", "gzip", "identity", "00-0-0-0", "a" * 3000]
    ),
    max_size=4,
)  # fmt: skip
MODELS = st.sampled_from(["router", "router-0.3", "inferior", "superior", "router-9", "gpt-4o", ""]) | VALUES
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": MODELS, "messages": st.lists(MESSAGE, max_size=3) | VALUES, "input": VALUES, "stream": VALUES,
        "max_tokens": VALUES, "tools": VALUES, "previous_response_id": VALUES, "conversation": VALUES, "system": VALUES,
    },
) | st.dictionaries(WORDS, VALUES, max_size=3)  # fmt: skip


def test_whatever_is_sent_to_any_route_is_answered_and_the_endpoint_goes_on(router, upstream):
    upstream.other_path = speaks_all
    with endpoint(router, upstream) as running, httpx.Client(trust_env=False, timeout=PATIENCE) as client:

        @fuzz(400)
        @given(METHODS, PATHS, HEADERS, with_damage(BODIES.map(as_json)))
        def send(method, path, headers, body):
            answer = client.request(method, running.address + path, headers=headers, content=body)
            assert answer.status_code < 500 or answer.status_code == 501, (answer.status_code, answer.text[:300])
            assert INFERIOR_KEY not in answer.text and SUPERIOR_KEY not in answer.text
            assert "Traceback" not in answer.text
            if answer.status_code >= 400 and method not in ("HEAD", "OPTIONS", "BREW"):  # the parser refuses the last
                assert json.loads(answer.content)["error"]["message"]

        send()
        assert running.decision(EASY_PROMPT)["model"] == "inferior"
