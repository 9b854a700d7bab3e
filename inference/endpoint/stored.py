"""Where stored responses and conversations of the Responses API live: a request that goes on with one must go there.

Ids are passed through as the upstreams made them. Where this replica handed out an id lately it remembers the model
that answered; else it asks the upstreams for the object, and the one that has it, by the name of the model where both
have it, is the one. So every replica finds the same model without shared state.
"""

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from urllib.parse import quote

import aiohttp

from inference.endpoint.apis import ApiError
from inference.endpoint.upstreams import Answer, Upstream, UpstreamClient, UpstreamFailed, UpstreamRequest

MAX_REMEMBERED = 20_000  # ids, by their hashes
MAX_OBJECT_BYTES = 2**20  # of a stored object that is read for the model's name
LOOK_UP_SECONDS = 10.0
FIRST_ID = re.compile(rb'"id"\s*:\s*"([\w.:-]{1,512})"')


Hit = tuple[Upstream, str | None]  # an upstream that has an object, and the model's name in it


class StoredObjects:
    """Finds the upstream of a stored response or conversation."""

    def __init__(self, client: UpstreamClient, upstreams: Sequence[Upstream]) -> None:
        self._client = client
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        self._remembered: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, answer: Answer) -> None:
        """Note who made the response that begins here; in a stream the first event names it."""
        if answer.status == 200 and (found := FIRST_ID.search(answer.first)):
            self._note(found[1].decode(), answer.upstream.name)

    async def upstream_of(self, stored_id: str, is_conversation: bool) -> Upstream:
        """Where the object lives.

        Raises:
            ApiError: no upstream has it, or they can't be asked.
        """
        if name := self._remembered.get(_key(stored_id)):
            return self._upstreams[name]
        path = f"/{'conversations' if is_conversation else 'responses'}/{quote(stored_id, safe='')}"
        by_address: dict[tuple[str, str], list[Upstream]] = {}
        for upstream in self._upstreams.values():
            by_address.setdefault((upstream.base_url, upstream.api_key), []).append(upstream)
        found = await asyncio.gather(*(self._look_up(upstreams, path) for upstreams in by_address.values()))
        hits = [hit for hits, _ in found for hit in hits]
        faults = [fault for _, fault in found if fault]
        if not hits and faults:
            raise ApiError(502, "upstream_unreachable", f"where {stored_id[:80]} lives can't be asked ({faults[0]})")
        if not hits:
            name = "conversation" if is_conversation else "previous_response"
            raise ApiError(404, f"{name}_not_found", f"neither model's server has {stored_id[:80]!r} stored", name)
        upstream, _ = max(hits, key=lambda hit: (_likeness(*hit), hit[0].name == "superior"))
        self._note(stored_id, upstream.name)
        return upstream

    async def _look_up(self, upstreams: list[Upstream], path: str) -> tuple[list[Hit], str | None]:
        """Those upstreams of one address that may have made the object at this path, and why that is not known."""
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                answer = await self._client.ask_once(upstreams[0], UpstreamRequest("GET", path, []))
        except (UpstreamFailed, TimeoutError) as error:
            return [], f"{upstreams[0].name}: {getattr(error, 'reason', 'timeout')}"
        try:
            if answer.status in (400, 404, 405, 410, 501):
                return [], None
            if answer.status != 200:
                return [], f"{upstreams[0].name}: status {answer.status}"
            model = await _model_of(answer)
        except (aiohttp.ClientError, TimeoutError):
            return [], f"{upstreams[0].name}: connection failed"
        finally:
            answer.close()
        return [(upstream, model) for upstream in upstreams], None

    def _note(self, stored_id: str, name: str) -> None:
        self._remembered[_key(stored_id)] = name
        self._remembered.move_to_end(_key(stored_id))
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def _likeness(upstream: Upstream, model: str | None) -> int:
    """How much of a stored object's model name is the upstream's: gpt-6-luna-2026 is gpt-6-luna more than gpt-6."""
    return len(upstream.model) if model and model.startswith(upstream.model) else 0


async def _model_of(answer: Answer) -> str | None:
    """The model's name in a stored object; None where it has none or is too large to read."""
    body = await answer.read(MAX_OBJECT_BYTES)
    if body is None:
        return None
    try:
        fields = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError):
        return None
    model = fields.get("model") if isinstance(fields, dict) else None
    return model if isinstance(model, str) else None


def _key(stored_id: str) -> bytes:
    return blake2b(stored_id.encode(), digest_size=16).digest()
