"""The client of the endpoint's benchmark: many chat completions, so many at a time."""

import asyncio
import json
import time
from collections.abc import Sequence

import aiohttp

from router_data import InputError

HEADERS = {"content-type": "application/json", "authorization": "Bearer none"}
ANSWER_SECONDS = 60  # for one answer; the upstream itself needs none


async def ask_all(
    port: int, model: str, prompts: Sequence[str], concurrency: int, stream: bool = False
) -> tuple[list[float], float]:
    """Ask a server for each prompt, so many at a time, on connections that are kept.

    Args:
        port: of the server on 127.0.0.1.
        model: the model asked for.
        concurrency: how many at a time.
        stream: whether to ask for streams.

    Returns:
        Seconds of each, to the end of the answer or, with `stream`, to the first byte of its body; and of all together.

    Raises:
        InputError: an answer is not a success.
    """
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    more = {"stream": True} if stream else {}
    messages = ([{"role": "user", "content": prompt}] for prompt in prompts)
    bodies = iter([json.dumps({"model": model, "messages": turns} | more).encode() for turns in messages])
    seconds: list[float] = []

    async def ask_in_turn(session: aiohttp.ClientSession) -> None:
        for body in bodies:
            started = time.perf_counter()
            async with session.post(url, data=body, headers=HEADERS) as answer:
                if answer.status != 200:
                    raise InputError(f"status {answer.status} for {model} at {url}: {(await answer.text())[:200]}")
                if stream:
                    await answer.content.readany()
                    seconds.append(time.perf_counter() - started)
                await answer.read()
            if not stream:
                seconds.append(time.perf_counter() - started)

    limits = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        started = time.perf_counter()
        try:
            await asyncio.gather(*(ask_in_turn(session) for _ in range(concurrency)))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise InputError(f"{url}: {error or type(error).__name__}") from error
        return seconds, time.perf_counter() - started
