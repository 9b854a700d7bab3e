"""Shadow mode: for a share of the router's requests the other model is asked as well, so that outcomes accumulate.

It happens after the client has its answer, never delays or changes one, and ends with a number of requests. While an
upstream is in trouble, or the endpoint is busy, nothing more is asked of it.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from inference.endpoint.apis import CHAT, MESSAGES, RESPONSES, Api
from inference.endpoint.bodies import Body
from inference.endpoint.body_parser import ParsedRequest
from inference.endpoint.records import Record
from inference.endpoint.upstreams import Upstream, UpstreamClient, UpstreamFailed, UpstreamRequest, decompressed

MAX_AT_ONCE = 2
MAX_WAITING = 32  # further ones are left out
MAX_REQUEST_BYTES = 256 * 1024  # their bodies stay in memory until the other model is asked
MAX_ANSWER_BYTES = 256 * 1024
MAX_PLAIN_BYTES = 8 * MAX_ANSWER_BYTES  # of a compressed answer
FIRST_PAUSE, MAX_PAUSE = 60.0, 3600.0  # seconds without requests to an upstream in trouble


@dataclass
class Job:
    """A request whose other model is to be asked."""

    record: Record
    request: UpstreamRequest
    other: Upstream
    answer: bytes = b""  # of the model that the client heard
    is_whole: bool = True

    def collect(self, chunk: bytes) -> None:
        """Keep a piece of the client's answer."""
        self.is_whole = self.is_whole and len(self.answer) + len(chunk) <= MAX_ANSWER_BYTES
        if self.is_whole:
            self.answer += chunk


class Shadow:
    """Asks the other model.

    Args:
        client: how upstreams are asked.
        share: of the router's requests, 0..1.
        max_requests: after so many it ends.
        finished: is called with the record of each job, whatever became of it, and how it ended.
    """

    def __init__(
        self, client: UpstreamClient, share: float, max_requests: int, finished: Callable[[Record, str], None]
    ) -> None:
        self._client, self.share, self.left = client, share, max_requests
        self._finished = finished
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._jobs: set[asyncio.Task] = set()
        self._paused_until: dict[str, float] = {}
        self._pauses: dict[str, int] = {}

    def job_for(self, record: Record, parsed: ParsedRequest, request: UpstreamRequest, other: Upstream) -> Job | None:
        """A job, where this request is drawn; decided before its answer comes, so that the answer can be kept."""
        if self.left <= 0 or random.random() >= self.share or request.body is None:
            return None
        if record.decision is None or not record.is_answer:
            return None
        too_many = len(self._jobs) >= MAX_WAITING or request.body.size > MAX_REQUEST_BYTES
        if too_many or parsed.stored_id or other.lacks(parsed.inputs, parsed.tokens) or self._is_paused(other):
            return None
        body = Body(list(request.body.parts), request.body.size)  # the request's own is released before
        return Job(record, replace(request, body=body), other)

    def start(self, job: Job) -> None:
        """Ask the other model, now that the client has its answer."""
        self.left -= 1
        self._jobs.add(asyncio.create_task(self._run(job)))

    def note_trouble(self, name: str) -> None:
        """A request of a client's found the upstream of this name in trouble."""
        self._pause_for(name, FIRST_PAUSE)

    async def close(self) -> None:
        """End what is under way; the records are finished without it."""
        for task in self._jobs:
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _is_paused(self, upstream: Upstream) -> bool:
        return time.monotonic() < self._paused_until.get(upstream.name, 0.0)

    async def _run(self, job: Job) -> None:
        result = "stopped"
        try:
            async with self._at_once:
                if self._is_paused(job.other):
                    result = "paused"
                else:
                    result = await self._ask(job)
        finally:
            self._jobs.discard(asyncio.current_task())  # type: ignore[arg-type]
            self._finished(job.record, result)

    async def _ask(self, job: Job) -> str:
        """Ask, and note both answers in the record; how it ended."""
        started = time.perf_counter()
        try:
            status, raw = await self._answer(job)
        except (UpstreamFailed, TimeoutError, OSError) as error:
            self._pause(job.other)
            return str(getattr(error, "reason", None) or "connection failed")
        job.record.shadow = {
            "model": job.other.model, "status": status, "seconds": round(time.perf_counter() - started, 6)
        }  # fmt: skip
        if status != 200:
            self._pause(job.other)
            return f"status {status}"
        self._pauses.pop(job.other.name, None)
        api, own = job.request.api, job.record.answer
        if api and own and job.is_whole and raw is not None:
            own_raw = decompressed(job.answer, own.header(b"content-encoding"), MAX_PLAIN_BYTES) or b""
            texts = await asyncio.to_thread(lambda: (answer_text(api, own_raw), answer_text(api, raw)))
            job.record.answers = {own.upstream.name: texts[0], job.other.name: texts[1]}
        return "answered"

    async def _answer(self, job: Job) -> tuple[int, bytes | None]:
        """The other model's status and whole answer; None where it is compressed in a way that can't be undone."""
        answer = await self._client.ask_once(job.other, job.request)
        try:
            raw = await answer.read(MAX_ANSWER_BYTES)
        finally:
            answer.close()
        if raw is None:
            raise UpstreamFailed("answer too long")
        return answer.status, decompressed(raw, answer.header(b"content-encoding"), MAX_PLAIN_BYTES)

    def _pause(self, upstream: Upstream) -> None:
        self._pauses[upstream.name] = pauses = self._pauses.get(upstream.name, 0) + 1
        self._pause_for(upstream.name, min(MAX_PAUSE, FIRST_PAUSE * 2 ** (pauses - 1)))

    def _pause_for(self, name: str, seconds: float) -> None:
        """Leave an upstream alone for so long; a longer pause that is under way stays."""
        self._paused_until[name] = max(self._paused_until.get(name, 0.0), time.monotonic() + seconds)


def answer_text(api: Api, raw: bytes) -> str:
    """The text of an answer, streamed or not; tool calls as JSON where there is no text; empty where it has neither."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return "".join(_texts_of_events(api, raw))
    return _text_of_object(api, fields) if isinstance(fields, dict) else ""


def _text_of_object(api: Api, fields: dict[str, Any]) -> str:
    try:
        if api == CHAT:
            message = fields["choices"][0]["message"]
            return message.get("content") or (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
        if api == RESPONSES:
            items = fields["output"]
            parts = [part for item in items if item.get("type") == "message" for part in item["content"]]
            calls = [item for item in items if item.get("type") == "function_call"]
        else:
            parts = fields["content"]
            calls = [part for part in parts if part.get("type") == "tool_use"]
        return "".join(part.get("text", "") for part in parts) or (json.dumps(calls) if calls else "")
    except (LookupError, TypeError, AttributeError):
        return ""


def _texts_of_events(api: Api, raw: bytes) -> Iterator[str]:
    for line in raw.split(b"\n"):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        try:
            event = json.loads(line[5:])
            if api == CHAT:
                yield from (choice["delta"].get("content") or "" for choice in event["choices"][:1])
            elif api == RESPONSES and event["type"] == "response.output_text.delta":
                yield event["delta"]
            elif api == MESSAGES and event["type"] == "content_block_delta":
                yield event["delta"].get("text", "")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            continue
