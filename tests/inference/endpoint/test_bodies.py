"""Large bodies: bounded memory, other requests go on, not a byte is changed."""

import asyncio
import json
import threading
import time

import aiohttp
import pytest
from openai_server import completion
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, PATIENCE, endpoint, headers_of_decision, user, wait_until

from inference.endpoint import bodies
from inference.endpoint.bodies import Body, MemoryBudget

MIB = 2**20


def large(size: int, text: str = EASY_PROMPT, filler: str = "the ") -> bytes:
    system = {"role": "system", "content": filler * (size // len(filler))}
    return json.dumps({"messages": [system, user(text)], "model": "router"}).encode()


@pytest.mark.parametrize("size", [10_000, 100_000, 600_000, 5 * MIB])
def test_a_large_request_is_routed_and_sent_on_byte_by_byte(routed, upstream, size):
    for text, model in ((EASY_PROMPT, b'"small"'), (HARD_PROMPT, b'"large"')):
        raw = large(size, text)
        assert routed.post(raw).status_code == 200
        assert upstream.payloads[-1] == raw.replace(b'"router"', model)


def test_a_chunked_request_has_no_length_and_goes_on_with_one(routed, upstream):
    raw = large(300_000)

    async def ask() -> int:
        async def pieces():
            for start in range(0, len(raw), 10_000):
                yield raw[start : start + 10_000]

        url, headers = f"{routed.address}/v1/chat/completions", {"content-type": "application/json"}
        async with aiohttp.ClientSession() as session, session.post(url, data=pieces(), headers=headers) as response:
            return response.status

    assert asyncio.run(ask()) == 200
    assert upstream.payloads[-1] == raw.replace(b'"router"', b'"small"')
    assert f"content-length: {len(raw) - 1}" in upstream.headers[-1].lower()


def test_faults_of_a_large_body_are_told_as_those_of_a_small_one(routed, upstream):
    start = large(600_000)[:-1]
    for raw, code in (
        (start, "invalid_json"), (start + b', "model": "router"}', "duplicate_key"),
        (start.replace(b'"router"', b"1") + b"}", "invalid_model"), (b"[" + b"{}," * 200_000 + b"{}]", "invalid_json"),
        (start.replace(b'"router"', b'"gpt-4"') + b"}", "model_not_found"),
    ):  # fmt: skip
        response = routed.post(raw)
        assert response.json()["error"]["code"] == code and response.status_code in (400, 404)
    assert upstream.bodies == []


def test_bodies_over_the_limit_are_refused_before_they_are_read(routed, upstream, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 200_000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    assert routed.raw(head + b"content-length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413")
    chunk = b"ffff\r\n" + b" " * 65535 + b"\r\n"
    assert routed.raw(head + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 5).startswith(b"HTTP/1.1 413")


@pytest.mark.slow
def test_large_bodies_wait_for_one_another_and_small_ones_do_not(router, upstream, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_BODIES_BYTES", 3 * MIB)
    upstream.behave = lambda prompt, nth, body: completion(f"I am {body['model']}")
    raw = large(2 * MIB)
    with endpoint(router, upstream) as running:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(raw)}\r\n\r\n{{"
        holder = threading.Thread(target=running.raw, args=(head.encode(),), kwargs={"patience": 1.5})
        holder.start()  # takes the memory, and sends nothing more
        time.sleep(0.3)
        started, found = time.monotonic(), []
        waiting = threading.Thread(target=lambda: found.append(running.post(raw).status_code))
        waiting.start()
        assert running.ask().status_code == 200 and time.monotonic() - started < 1.2 and not found
        waiting.join(PATIENCE)
        holder.join(PATIENCE)
        assert found == [200]


@pytest.mark.slow
def test_twelve_large_requests_at_once_are_all_answered(routed, upstream):
    raw, found = large(12 * MIB), []
    threads = [threading.Thread(target=lambda: found.append(routed.post(raw).status_code)) for _ in range(12)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert routed.ask().status_code == 200
    assert found == [200] * 12


LARGE_BODIES = {
    "one text": lambda: large(30 * MIB),
    "many objects": lambda: b'{"model":"inferior","x":[%s{}]}' % (b"{}," * (4 * MIB)),
    "many turns": lambda: (
        b'{"model":"router","messages":[%s{"role":"user","content":"%s"}]}'
        % (b'{"role":"user","content":"a"},' * 30_000, EASY_PROMPT.encode())
    ),
    "many turns, not routed": lambda: (
        b'{"model":"inferior","messages":[%s{"role":"user","content":"a"}]}'
        % (b'{"role":"user","content":"a<b>"},' * 8_000)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE_BODIES)
def test_the_event_loop_does_no_long_work_for_one_body(routed, upstream, kind):
    """Measured in processor time between two turns of the loop, so that a busy machine does not count."""
    # the scripted server shares this process and its collector, so it parses nothing
    upstream.other_path = lambda path, payload: completion("x")
    raw = LARGE_BODIES[kind]()
    loop = routed.server.servers[0].get_loop()
    longest = []
    for _ in range(3):  # the collector's pauses are not the endpoint's, so the best of three counts
        gaps, stop = [], threading.Event()

        async def watch(gaps=gaps, stop=stop) -> None:
            while not stop.is_set():
                started = time.thread_time()
                await asyncio.sleep(0)
                gaps.append(time.thread_time() - started)

        watching = asyncio.run_coroutine_threadsafe(watch(), loop)
        headers = headers_of_decision(routed.post(raw).headers)
        stop.set()
        watching.result(PATIENCE)
        assert headers["model"] == "inferior"
        longest.append(max(gaps))
    assert min(longest) < 0.02


@pytest.mark.slow
def test_a_body_too_complex_for_the_parser_is_refused_and_the_next_one_parsed(routed):
    deep = b'{"model":"inferior","x":%s%s}' % (b"[" * 400_000, b"]" * 400_000)
    assert routed.post(deep).status_code == 400
    assert routed.post(large(600_000)).status_code == 200


def test_a_parsing_process_runs_before_the_first_large_body(router, upstream, monkeypatch):
    monkeypatch.undo()  # of what spares the other tests this process
    with endpoint(router, upstream) as running:
        parsers = running.app.bodies._parsers.queue
        wait_until(lambda: parsers[-1]._process)
        process = parsers[-1]._process
        assert running.post(large(100_000)).status_code == 200
        assert parsers[-1]._process is process
    assert process.returncode is not None  # it ends with the endpoint


def test_another_name_takes_the_place_of_the_models_whatever_the_pieces():
    raw = b'{"a": 1, "model": "router", "b": 2}'
    start, end = raw.index(b'"router"'), raw.index(b'"router"') + len(b'"router"')
    for size in range(1, len(raw) + 1):
        parts = [raw[i : i + size] for i in range(0, len(raw), size)]
        changed = Body(parts, len(raw)).with_model(start, end, "smäll")
        assert b"".join(changed.parts) == raw.replace(b'"router"', b'"sm\\u00e4ll"')
        assert changed.size == len(b"".join(changed.parts))


def test_memory_is_given_in_the_order_of_asking():
    async def run() -> list[str]:
        budget, order = MemoryBudget(10), []

        async def take(name: str, size: int) -> None:
            await budget.reserve(size)
            order.append(name)

        await take("a", 8)
        waiting = [asyncio.create_task(take(name, size)) for name, size in (("b", 6), ("left", 1), ("c", 2))]
        await asyncio.sleep(0)
        assert order == ["a"]  # c would fit, but b came first
        waiting[1].cancel()
        await asyncio.sleep(0)
        budget.give_back(8)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert budget.free == 2
        return order

    assert asyncio.run(run()) == ["a", "b", "c"]
