"""Very many requests at once over all three APIs, with and without faults: every client gets its own answer's bytes."""

import asyncio
import json
import random
from dataclasses import dataclass

import aiohttp
import pytest
from model_apis import events, message_object, message_stream, response_object, response_stream
from openai_server import Answer, completion, error, stream_of
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, endpoint, user, wait_until

from inference import serve_openai_api

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
WHOLE = (lambda model, text: completion(text), response_object, message_object)
STREAMS = (lambda model, text, **more: stream_of(text, **more), response_stream, message_stream)
FIRST_EVENT_ERROR = events(("error", {"error": {"type": "overloaded_error", "message": "no"}}))
FAULTS = {  # that end an attempt before the client has seen anything, and the status where no other model can answer
    "overloaded": (error(503), 503),
    "too many": (error(429), 429),
    "broken off": (Answer("", cut=0, headers={"content-length": "9"}), 502),
    "empty": (Answer(b""), 502),
    "a page": (Answer(b"<html>", headers={"content-type": "text/html"}), 502),
    "an error as its first event": (Answer(pieces=FIRST_EVENT_ERROR), 502),
    "too long": (error(400, "context_length_exceeded"), 400),
    "no such model": (error(404), 502),
    "a wrong key": (error(401), 502),
}


@dataclass(frozen=True)
class Case:
    """One request: its number makes it another one than all others."""

    number: int
    prompt: str

    @property
    def api(self) -> int:
        return self.number % len(PATHS)

    @property
    def is_stream(self) -> bool:
        return self.number % 4 > 0

    @property
    def leaves(self) -> bool:
        """Whether the client goes away after the first bytes."""
        return self.number % 7 == 0

    def body(self) -> dict:
        said = {"input": self.prompt} if self.api == 1 else {"messages": [user(self.prompt)]}
        return {"model": "router", "stream": self.is_stream, "max_tokens": 9} | said

    def fault(self, model: str) -> str | None:
        """What is wrong with this model's answer to it: nothing, one of FAULTS, or a stream that breaks off."""
        draw = random.Random(f"{self.number} {model}")
        return draw.choice([*FAULTS, "cut"]) if draw.random() < 0.5 else None

    def answer(self, model: str, **more) -> Answer:
        text = f"{model} {self.prompt} " * 3
        return (STREAMS if self.is_stream else WHOLE)[self.api](model, text, **more)

    def bytes_of(self, model: str) -> bytes:
        answer = self.answer(model)
        if not isinstance(answer, Answer):
            return json.dumps(answer).encode()
        return json.dumps(answer.body).encode() if answer.pieces is None else b"".join(answer.pieces)


def cases_of(count: int) -> list[Case]:
    return [Case(i, f"{random.Random(i).choice([EASY_PROMPT, HARD_PROMPT])} number {i}") for i in range(count)]


@dataclass
class Outcome:
    """What a client got."""

    status: int = 0
    model: str | None = None
    received: bytes = b""
    is_whole: bool = False


async def ask(session: aiohttp.ClientSession, case: Case, stays: bool = True) -> Outcome:
    outcome = Outcome()
    try:
        async with session.post(PATHS[case.api], json=case.body()) as response:
            outcome.status, outcome.model = response.status, response.headers.get("x-router-upstream-model")
            async for piece in response.content.iter_any():
                outcome.received += piece
                if not stays:
                    return outcome
            outcome.is_whole = True
    except aiohttp.ClientError:
        pass
    return outcome


def ask_all(address: str, cases: list[Case], upstream=None, leave: bool = False) -> list[Outcome]:
    async def run() -> list[Outcome]:
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as session:
            answers = asyncio.gather(*(ask(session, case, not (leave and case.leaves)) for case in cases))
            while upstream and upstream.held < len(cases) and not answers.done():  # all are open before one goes on
                await asyncio.sleep(0.05)
            if upstream:
                upstream.release()
            return await answers

    return asyncio.run(run())


def case_of(body: dict, cases: list[Case]) -> Case:
    prompt = body.get("input") or body["messages"][0]["content"]
    return cases[int(prompt.rpartition(" ")[2])]


@pytest.mark.slow
def test_a_thousand_streams_at_once_over_three_apis_and_none_is_mixed_up(router, upstream):
    serve_openai_api.allow_open_files(8192)  # here are both ends of every connection
    cases = [case for case in cases_of(1334) if case.is_stream]
    numbered = {case.number: case for case in cases}
    upstream.behave = lambda prompt, nth, body: case_of(body, numbered).answer(body["model"], hold=True)
    with endpoint(router, upstream, timeout=120) as running:
        outcomes = ask_all(running.address, cases, upstream)
        assert running.metrics()["router_responses_total{200}"] == len(cases) == 1000
    models = ["large" if score >= 0.5 else "small" for score in router.score([case.prompt for case in cases])]
    assert set(models) == {"small", "large"}
    for case, model, outcome in zip(cases, models, outcomes, strict=True):
        assert outcome == Outcome(200, model, case.bytes_of(model), True), case


@pytest.mark.slow
def test_in_a_storm_of_faults_every_client_gets_its_own_answer_or_its_error(router, upstream):
    cases = cases_of(420)

    def behave(prompt: str, nth: int, body: dict) -> Answer:
        case = case_of(body, cases)
        fault = case.fault(body["model"])
        if fault in FAULTS:
            return FAULTS[fault][0]
        answer = case.answer(body["model"])
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        if fault == "cut":
            answer.cut = 2 if case.is_stream else 20
        return answer

    upstream.behave = behave
    with endpoint(router, upstream) as running:
        outcomes = ask_all(running.address, cases, leave=True)
        wait_until(lambda: running.get("/health").json()["in_flight"] == 0)
        asked = sum(value for name, value in running.metrics().items() if name.startswith("router_requests_total"))
        assert asked == len(cases)

    scores = router.score([case.prompt for case in cases])
    seen = set()
    for case, score, outcome in zip(cases, scores, outcomes, strict=True):
        order = ["large"] if score >= 0.5 else ["small", "large"]
        model = next((model for model in order if case.fault(model) not in FAULTS), None)
        if model is None:
            status = FAULTS[case.fault("large")][1]
            seen.add(("error", case.api))
            assert outcome.status == status and case.prompt.encode() not in outcome.received, case
            continue
        expected = case.bytes_of(model)
        assert (outcome.status, outcome.model) == (200, model), case
        if outcome.is_whole:
            assert outcome.received == expected and case.fault(model) is None, case
        else:
            assert expected.startswith(outcome.received) and (case.leaves or case.fault(model) == "cut"), case
        seen.add(("whole" if outcome.is_whole else "part", case.api))
    assert len(seen) == 9  # each end in each API
