"""Shadow mode: the other model is asked too, behind the answer, within a budget, and never in trouble's way."""

import gzip
import json

import pytest
from model_apis import message_object, message_stream, response_object, response_stream, speaks_all
from openai_server import Answer, completion, error
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, PICTURE, broken, endpoint, says_its_name, user, wait_until

from inference.endpoint import shadow
from inference.endpoint.apis import CHAT, MESSAGES, RESPONSES
from inference.endpoint.shadow import answer_text
from router_data import ShadowedDecision, read_rows


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


@pytest.fixture
def shadowed(router, upstream, log):
    with endpoint(router, upstream, decision_log=log, log_prompts=True, shadow_share=1.0) as running:
        yield running


def rows_in(log) -> list[dict]:
    """The rows that are whole: a reader may meet the last one half written."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def test_both_answers_stand_in_the_decision_log(shadowed, upstream, log):
    upstream.other_path = speaks_all
    for stream in (False, True):
        shadowed.ask(EASY_PROMPT, stream=stream).http_response.read()
        shadowed.post({"model": "router", "input": HARD_PROMPT, "stream": stream}, "/v1/responses")
        shadowed.post({"model": "router", "messages": [user(EASY_PROMPT)], "stream": stream}, "/v1/messages")
    wait_until(lambda: len(rows_in(log)) == 6)
    for row in read_rows(log, ShadowedDecision):
        answers = (row.inferior_answer.strip(), row.superior_answer.strip())
        assert answers == ("I am small", "I am large")
        other = {"inferior": "large", "superior": "small"}[row.answered_by]
        assert row.shadow["model"] == other and row.shadow["status"] == 200
    bodies = [json.loads(payload) for payload in upstream.payloads]
    assert all(body["model"] in ("small", "large") for body in bodies)
    wait_until(lambda: shadowed.metrics().get("router_shadow_requests_total{answered}") == 6)


def test_the_client_has_its_answer_before_the_other_model_is_asked(shadowed, upstream, log):
    upstream.behave = broken("large", by=Answer(completion("late").body, delay=60))
    assert shadowed.ask(EASY_PROMPT).http_response.elapsed.total_seconds() < 30
    wait_until(lambda: [body["model"] for body in upstream.bodies] == ["small", "large"])
    assert rows_in(log) == []  # the row waits for the other answer
    shadowed.stop()
    [row] = rows_in(log)
    assert row["answered_by"] == "inferior" and "superior_answer" not in row


def test_a_number_of_requests_is_the_budget(router, upstream, log):
    flags = {"decision_log": log, "log_prompts": True, "shadow_share": 1.0, "shadow_max_requests": 2}
    with endpoint(router, upstream, **flags) as running:
        for i in range(5):
            running.ask(f"{EASY_PROMPT} {'please ' * i}")
        wait_until(lambda: len(rows_in(log)) == 5)
    assert [body["model"] for body in upstream.bodies].count("large") == 2
    assert sum("superior_answer" in row for row in rows_in(log)) == 2


def test_a_share_is_drawn(router, upstream, log, monkeypatch):
    drawn = iter([0.1, 0.5, 0.01, 0.9])
    monkeypatch.setattr(shadow.random, "random", lambda: next(drawn))
    with endpoint(router, upstream, decision_log=log, log_prompts=True, shadow_share=0.2) as running:
        for i in range(4):
            running.ask(f"{EASY_PROMPT} {'please ' * i}")
        wait_until(lambda: len(rows_in(log)) == 4)
    assert ["superior_answer" in row for row in rows_in(log)].count(True) == 2


@pytest.mark.parametrize("fault", [error(503), error(429), Answer(b""), Answer("x", status="banana")])
def test_an_upstream_in_trouble_is_left_alone(shadowed, upstream, log, fault):
    upstream.behave = broken("large", by=fault)
    for i in range(4):
        shadowed.ask(f"{EASY_PROMPT} {'please ' * i}")
        wait_until(lambda i=i: len(rows_in(log)) == i + 1)
    assert [body["model"] for body in upstream.bodies].count("large") == 1  # and never a second try


def asked_after_a_clients_trouble(shadowed, upstream, log) -> list[str]:
    """A client finds the large model in trouble, then it is well: the models that an easy prompt is put to."""
    rows = len(rows_in(log))
    upstream.behave = broken("large", by=error(500))
    with pytest.raises(Exception, match="no"):
        shadowed.ask(HARD_PROMPT)
    upstream.behave = says_its_name
    asked = len(upstream.bodies)
    shadowed.ask(EASY_PROMPT)
    wait_until(lambda: len(rows_in(log)) == rows + 2)
    return [body["model"] for body in upstream.bodies[asked:]]


def test_trouble_that_clients_meet_counts_too(shadowed, upstream, log):
    assert asked_after_a_clients_trouble(shadowed, upstream, log) == ["small"]


def test_a_clients_trouble_shortens_no_pause(shadowed, upstream, log, monkeypatch):
    monkeypatch.setattr(shadow, "FIRST_PAUSE", 3600.0)  # as long as after several failures
    upstream.behave = broken("large", by=error(503))
    shadowed.ask(EASY_PROMPT)
    wait_until(lambda: len(rows_in(log)) == 1)
    monkeypatch.setattr(shadow, "FIRST_PAUSE", 0.0)
    assert asked_after_a_clients_trouble(shadowed, upstream, log) == ["small"]


def test_only_decisions_of_the_routers_are_shadowed(router, upstream, log):
    inferior = {"inputs": frozenset({"text"})}
    flags = {"decision_log": log, "log_prompts": True, "shadow_share": 1.0, "inferior": inferior}
    upstream.other_path = speaks_all
    with endpoint(router, upstream, **flags) as running:
        running.post({"model": "router", "messages": [user(EASY_PROMPT)]}, "/v1/messages/count_tokens")  # no answer
        running.ask(EASY_PROMPT, "inferior")
        running.ask([{"role": "system", "content": "x"}])
        running.ask([user([PICTURE, {"type": "text", "text": HARD_PROMPT}])])  # the other one can't take it
        upstream.behave = broken("small", by=error(400))
        running.ask(EASY_PROMPT)  # both were asked already
        wait_until(lambda: len(rows_in(log)) == 3)
    assert [body["model"] for body in upstream.bodies] == ["small", "large", "large", "small", "large"]
    assert upstream.paths.count("/v1/messages/count_tokens") == 1


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("identity", bytes)])
def test_answers_with_an_encoding_are_read(shadowed, upstream, log, encoding, encode):
    raw = encode(json.dumps(completion("squeezed").body).encode())
    upstream.behave = lambda *_: Answer(raw, headers={"content-encoding": encoding})
    assert shadowed.ask(EASY_PROMPT).parse().choices[0].message.content == "squeezed"
    wait_until(lambda: len(rows_in(log)) == 1)
    [row] = rows_in(log)
    assert (row["inferior_answer"], row["superior_answer"]) == ("squeezed", "squeezed")


def test_the_text_of_an_answer_in_every_form():
    def raw(answer: Answer) -> bytes:
        return b"".join(answer.pieces) if answer.pieces else json.dumps(answer.body).encode()

    for api, answer in (
        (CHAT, completion("one two")),
        (RESPONSES, Answer(response_object("m", "one two"))),
        (RESPONSES, response_stream("m", "one two")),
        (MESSAGES, Answer(message_object("m", "one two"))),
        (MESSAGES, message_stream("m", "one two")),
    ):
        assert answer_text(api, raw(answer)).strip() == "one two"
    call = {"choices": [{"message": {"content": None, "tool_calls": [{"id": "c"}]}}]}
    assert json.loads(answer_text(CHAT, json.dumps(call).encode())) == [{"id": "c"}]
    for nonsense in (b"", b"{", b"[]", b"{}", b'{"choices": []}', b"data: {}\n\n", b"data: [1]\n\n", b"\xff"):
        assert [answer_text(api, nonsense) for api in (CHAT, RESPONSES, MESSAGES)] == ["", "", ""]
