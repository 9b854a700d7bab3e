"""Requests that go on with a stored response or conversation reach the model that has it, on every replica."""

import json

import openai
import pytest
from model_apis import response_object, response_stream
from openai_server import Answer, OpenAIServer, error
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, endpoint, headers_of_decision, nobody

from inference.endpoint.body_parser import ParsedRequest


class Store:
    """A server of the Responses API that stores what it says, and knows no other ids."""

    def __init__(self, prefix: str, dated: str = "-2026-01-01") -> None:
        self.prefix, self.dated, self.objects, self.looked_up = prefix, dated, {}, 0

    def __call__(self, path: str, payload: bytes) -> Answer | None:
        method, _, path = path.partition(" ")
        if method == "POST" and path == "/responses":
            body = json.loads(payload)
            if body.get("previous_response_id") not in (None, *self.objects):
                return error(400, "previous_response_not_found")
            response_id = f"{self.prefix}{len(self.objects)}"
            self.objects[response_id] = response_object(body["model"] + self.dated, "x", response_id)
            if body.get("stream"):
                answer = response_stream(body["model"], "one two")
                answer.pieces = [piece.replace(b"resp_1", response_id.encode()) for piece in answer.pieces]
                return answer
            return Answer(self.objects[response_id])
        if method in ("GET", "DELETE") and path.split("/")[1] in ("responses", "conversations"):
            self.looked_up += 1
            found = self.objects.get(path.split("/")[2])
            return Answer(found) if found else error(404, "not_found")
        return None


@pytest.fixture
def two_stores():
    """A server for each model."""
    with OpenAIServer() as small, OpenAIServer() as large:
        small.other_path, large.other_path = Store("resp_s"), Store("resp_l")
        yield small, large


def ask(running, prompt: str, previous: str | None = None, **more):
    more = more | ({"previous_response_id": previous} if previous else {})
    raw = running.client.responses.with_raw_response.create(model="router", input=prompt, **more)
    return headers_of_decision(raw.headers), raw


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_where_it_began_on_every_replica(router, two_stores, stream):
    urls = [server.url for server in two_stores]
    with endpoint(router, urls=urls) as one, endpoint(router, urls=urls) as other:
        for first, second, model in ((EASY_PROMPT, HARD_PROMPT, "inferior"), (HARD_PROMPT, EASY_PROMPT, "superior")):
            _, raw = ask(one, first, stream=stream)
            said = list(raw.parse())[0].response if stream else raw.parse()
            for running in (one, other, other):
                decision, _ = ask(running, second, said.id)
                assert (
                    decision == decision | {"model": model, "reason": "stored conversation"} and "score" not in decision
                )
    # the replica that handed the id out asks nobody, the other one asks once
    assert [server.other_path.looked_up for server in two_stores] == [2, 2]


def test_one_server_of_both_models_is_asked_for_the_models_name(router, upstream):
    upstream.other_path = Store("resp_")
    with endpoint(router, upstream) as one, endpoint(router, upstream) as other:
        for first, second, model in ((EASY_PROMPT, HARD_PROMPT, "small"), (HARD_PROMPT, EASY_PROMPT, "large")):
            _, raw = ask(one, first)
            for running in (one, other):
                assert ask(running, second, raw.parse().id)[0]["upstream-model"] == model
    assert upstream.other_path.looked_up == 4  # by the other replica, with the key of each model


def test_where_one_models_name_begins_anothers_the_longer_one_counts(router, upstream):
    upstream.other_path = Store("resp_")
    names = {"inferior": {"model": "gpt-6-luna"}, "superior": {"model": "gpt-6"}}
    with endpoint(router, upstream, **names) as one, endpoint(router, upstream, **names) as other:
        for prompt, model in ((EASY_PROMPT, "gpt-6-luna"), (HARD_PROMPT, "gpt-6")):
            _, raw = ask(one, prompt)
            assert ask(other, prompt, raw.parse().id)[0]["upstream-model"] == model


def test_a_conversation_that_both_have_stays_at_one_model(router, upstream):
    store = Store("resp_")
    store.objects["conv_1"] = {"id": "conv_1", "object": "conversation"}
    upstream.other_path = store
    with endpoint(router, upstream) as one, endpoint(router, upstream) as other:
        for running in (one, other):
            for prompt in (EASY_PROMPT, HARD_PROMPT):
                assert ask(running, prompt, conversation="conv_1")[0]["model"] == "superior"


def test_what_nobody_has_is_not_found_and_what_cannot_be_asked_is_told(router, two_stores):
    urls = [server.url for server in two_stores]
    with endpoint(router, urls=urls) as running:
        with pytest.raises(openai.NotFoundError, match="neither model's server has 'resp_x'") as caught:
            ask(running, EASY_PROMPT, "resp_x")
        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError, match="neither"):
            ask(running, EASY_PROMPT, conversation={"id": "conv_x"})
    with endpoint(router, urls=(nobody(), two_stores[1].url)) as running:
        with pytest.raises(openai.InternalServerError, match="can't be asked .inferior: connection failed"):
            ask(running, EASY_PROMPT, "resp_x")
        two_stores[1].other_path.objects["resp_y"] = response_object("large", "x", "resp_y")
        assert ask(running, EASY_PROMPT, "resp_y")[0]["model"] == "superior"


def test_a_stored_conversation_never_falls_back_and_a_clients_choice_is_honoured(router, two_stores):
    small, large = two_stores
    with endpoint(router, urls=[small.url, large.url]) as running:
        _, raw = ask(running, EASY_PROMPT)
        chosen = running.client.responses.with_raw_response
        with pytest.raises(openai.BadRequestError):
            chosen.create(model="superior", input="x", previous_response_id=raw.parse().id)
        small.other_path = lambda path, payload: error(503)
        asked = len(large.paths)
        with pytest.raises(openai.InternalServerError):
            ask(running, EASY_PROMPT, raw.parse().id)
        assert len(large.paths) == asked


def test_a_stored_response_is_fetched_and_deleted_where_it_lives(router, two_stores):
    with endpoint(router, urls=[server.url for server in two_stores]) as running:
        for prompt, model in ((EASY_PROMPT, "small"), (HARD_PROMPT, "large")):
            _, raw = ask(running, prompt)
            found = running.client.responses.retrieve(raw.parse().id)
            assert found.model.startswith(model)
            assert running.send("DELETE", f"/v1/responses/{raw.parse().id}").status_code == 200
        assert running.get("/v1/responses/resp_unknown").status_code == 404


def test_a_parsed_request_has_no_stored_id_by_default():
    assert ParsedRequest("m", 0, 0).stored_id is None
