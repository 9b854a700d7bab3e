"""One request and its answer, from the first byte to the last."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from inference.endpoint.apis import (
    APIS,
    MESSAGES,
    RESPONSES,
    Api,
    ApiError,
    Headers,
    Receive,
    Scope,
    Send,
    below_v1,
    respond_with_error,
)
from inference.endpoint.bodies import Body, ClientGone
from inference.endpoint.body_parser import ParsedRequest
from inference.endpoint.records import LOG, USAGE_BYTES, Record
from inference.endpoint.shadow import Job
from inference.endpoint.upstreams import Answer, Upstream, UpstreamRequest, UpstreamUnavailable
from router_data import TIER_NAMES
from router_model import UserTurns

if TYPE_CHECKING:
    from inference.endpoint.app import EndpointApp

INLINE_SCORING_MAX_CHARACTERS = 1000  # characters of a prompt that is scored in a few milliseconds
SERVED = (
    "there are POST /v1/chat/completions, /v1/responses (also /input_tokens and /compact), /v1/messages (also "
    "/count_tokens), GET /v1/models, /health and /metrics"
)
LAST_EVENTS = {RESPONSES.name: b"response.completed", MESSAGES.name: b"message_stop"}  # of a stream


class _Exchange:
    """What all exchanges share: a record, the bound on their number, errors, and the way of an answer's bytes."""

    def __init__(
        self, app: "EndpointApp", path: str, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        self.app, self.path, self.scope, self.headers = app, path, scope, headers
        self.receive, self.send = receive, send
        self.api = api = APIS.get(path)
        self.record = Record(api=api.name if api else "other", is_answer=bool(api and api.generates))
        self.job: Job | None = None
        self._started = False  # whether anything has gone to the client
        self._span: Any = None

    async def run(self) -> None:
        """Answer the request, whatever happens, and keep how it ended."""
        app, record = self.app, self.record
        app.in_flight += 1
        if app.settings.tracing:
            name = f"POST /v1{self.api.path}" if self.api else "other"
            self._span = app.settings.tracing.start(name, self.raw_headers)
        try:
            app.settings.access.check_key(self.headers)
            if app.in_flight > app.settings.max_in_flight:
                raise ApiError(429, "too_many_requests", "too many requests at once", headers={"retry-after": "1"})
            await self._serve()
        except ApiError as error:
            await self._fail(error)
        except ClientGone:
            record.status, record.error = 499, "client_gone"
        except asyncio.CancelledError:
            record.status, record.error = 503, "stopped"
            raise
        except Exception:
            LOG.exception("the router failed")
            await self._fail(ApiError(500, "internal_error", "the router failed; its log says why"))
        finally:
            app.in_flight -= 1
            record.ended = time.perf_counter()
            if self._span:
                app.settings.tracing.end(self._span, record)  # type: ignore[union-attr]
            # The answer's last bytes leave at the end of this turn of the event loop: what is kept of it waits for them
            asyncio.get_running_loop().call_soon(app.finish, record, self.job)

    @property
    def raw_headers(self) -> Headers:
        """The client's headers, in their order."""
        return self.scope["headers"]

    async def _serve(self) -> None:
        raise NotImplementedError

    async def _fail(self, error: ApiError) -> None:
        self.record.status, self.record.error = error.status, error.code
        if not self._started:  # else the missing end of the answer says it
            is_anthropic = bool(self.api and self.api.is_anthropic)
            await respond_with_error(self.send, error, is_anthropic, self.record.headers())

    def _headers_for_upstream(self) -> Headers:
        if self._span:
            return self.app.settings.tracing.outgoing(self._span, self.raw_headers)  # type: ignore[union-attr]
        return self.raw_headers

    async def _ask(self, upstreams: list[Upstream], request: UpstreamRequest) -> Answer:
        """The first answer, noted in the record.

        Raises:
            ApiError: there is none.
        """
        record = self.record
        try:
            answer = await self.app.client.ask(upstreams, request)
        except UpstreamUnavailable as error:
            record.failures = error.failures
            if error.code == "upstream_refused_key":
                LOG.error("%s", error)
            raise ApiError(error.status, error.code, str(error)) from error
        record.answer, record.failures, record.status = answer, answer.failures, answer.status
        if answer.status >= 400:
            record.error = f"upstream_{answer.status}"
        if any(failure.endswith(("status 401", "status 402", "status 403")) for failure in answer.failures):
            LOG.error("a model's server refuses the router's own key (%s); mend it in .env", "; ".join(answer.failures))
        return answer

    async def _pass_on(self, answer: Answer) -> None:
        """The answer's bytes to the client, as they come."""
        record = self.record
        keeps_ends = self.app.log and not answer.header(b"content-encoding")
        last_event = LAST_EVENTS.get(record.api)
        self._started = True
        try:
            headers = answer.headers + record.headers()
            await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
            record.head = answer.first[:USAGE_BYTES] if keeps_ends else b""
            async for chunk in answer.chunks():
                if keeps_ends:
                    record.tail = (record.tail + chunk)[-USAGE_BYTES:]
                if self.job:
                    self.job.collect(chunk)
                await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
                # Clients leave at a stream's last event
                if last_event:
                    record.stream_finished = record.stream_finished or last_event in chunk
                else:
                    record.stream_finished = chunk[-20:].rstrip().endswith(b"[DONE]")
        except (aiohttp.ClientError, TimeoutError):
            # Without the end of the body the server breaks the connection: the client sees that something is missing.
            record.error = "stream_cut"
        else:
            await self.send({"type": "http.response.body", "body": b""})
        finally:
            answer.close()

    @asynccontextmanager
    async def _while_connected(self) -> AsyncIterator[None]:
        """Ends the block, and with it the work upstream, when the client goes away or the server stops.

        Raises:
            ApiError: the server stopped before anything had gone to the client.
        """
        task, client_left, server_stopped = asyncio.current_task(), False, False
        assert task

        async def watch() -> None:
            nonlocal client_left
            while (await self.receive())["type"] != "http.disconnect":
                pass
            client_left = True
            task.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            task.uncancel()
            server_stopped = not client_left
        finally:
            watching.cancel()
        if client_left and not self.record.stream_finished:
            self.record.status, self.record.error = 499, "client_gone"
        elif server_stopped:
            self.record.error = "stopped"
            if not self._started:
                raise ApiError(503, "stopped", "the router is being stopped")


class Exchange(_Exchange):
    """A request of one of the APIs that are routed."""

    api: Api

    async def _serve(self) -> None:
        # 1. The request, of which only a few fields matter here
        if not self.headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            # also what keeps web pages of other origins from spending money here: browsers ask before they send JSON
            raise ApiError(415, "unsupported_media_type", "send the body with `Content-Type: application/json`")
        app = self.app
        async with app.bodies.read(self.headers, self.receive) as body:
            max_length = app.router.settings.max_length
            parsed = await app.bodies.parse(body, self.api, max_length, app.measures)
            self.record.requested_model, threshold = app.parse_model(parsed.model)
            async with self._while_connected():
                # 2. Which model
                self.record.upstream = await self._upstream_for(parsed, threshold)
                request = self._request(body, parsed)

                # 3. Its answer, as it comes; the body is not needed for longer
                answer = await self._ask(self._in_order(parsed), request)
                if answer.status == 200 and not answer.failures:
                    other = app.upstreams["inferior" if answer.upstream.name == "superior" else "superior"]
                    self.job = app.shadow.job_for(self.record, parsed, request, other)
                body.release()
                if self.api == RESPONSES:
                    app.stored.remember(answer)
                await self._pass_on(answer)

    async def _upstream_for(self, parsed: ParsedRequest, threshold: float | None) -> Upstream:
        """The model asked for, the one where the stored conversation lives, or the one that the router chooses."""
        app, record = self.app, self.record
        if record.requested_model != "router":
            if app.settings.log_prompts and parsed.turns:
                record.keep_prompt(parsed.turns)
            return app.upstreams[record.requested_model]
        if parsed.stored_id:
            record.reason = "stored conversation"
            return await app.stored.upstream_of(parsed.stored_id, parsed.is_conversation)
        if parsed.turns_fault:
            raise ApiError(400, f"invalid_{self.api.conversation}", parsed.turns_fault, self.api.conversation)
        if parsed.turns is None:
            record.reason = "nothing to score"
            return app.upstreams["superior"]
        await self._decide(parsed.turns, parsed.characters, app.threshold if threshold is None else threshold)
        upstream = app.upstreams[TIER_NAMES[record.decision.router_label]]  # type: ignore[union-attr]
        if upstream.name == "inferior" and (lack := upstream.lacks(parsed.inputs, parsed.tokens)):
            record.reason = lack
            return app.upstreams["superior"]
        return upstream

    async def _decide(self, turns: UserTurns, characters: int, threshold: float) -> None:
        app, record = self.app, self.record
        if app.settings.log_prompts:
            record.keep_prompt(turns)
        started = time.perf_counter()
        # Score on the event loop when idle: handing over to a thread costs 0.4 ms
        inline = app.in_flight == 1 and characters <= INLINE_SCORING_MAX_CHARACTERS and len(turns) <= 2
        record.route = await app.sessions.route(turns, threshold, inline)
        record.decision_seconds = time.perf_counter() - started

    def _in_order(self, parsed: ParsedRequest) -> list[Upstream]:
        """The models that may answer: a choice of the client's own is honoured, one of the router's can be mended."""
        app, upstream = self.app, self.record.upstream
        assert upstream
        if self.record.requested_model != "router" or parsed.stored_id:
            return [upstream]
        if upstream.name == "inferior":
            return [upstream, app.upstreams["superior"]]
        return [upstream, app.upstreams["inferior"]] if app.settings.fall_back_to_inferior else [upstream]

    def _request(self, body: Body, parsed: ParsedRequest) -> UpstreamRequest:
        span = (parsed.model_start, parsed.model_end)
        headers = self._headers_for_upstream()
        return UpstreamRequest("POST", self.api.path, headers, self.scope["query_string"], body, span, self.api)


class OtherExchange(_Exchange):
    """A request of a path that is not routed: for the upstream of a stored response, or the one that a flag names."""

    async def _serve(self) -> None:
        async with self.app.bodies.read(self.headers, self.receive) as body, self._while_connected():
            self.record.upstream = await self._upstream()
            raw_path = below_v1(self.scope["raw_path"].decode("latin-1"))
            sent = body if body.size else None
            method, query = self.scope["method"], self.scope["query_string"]
            request = UpstreamRequest(method, raw_path, self._headers_for_upstream(), query, sent)
            await self._pass_on(await self._ask([self.record.upstream], request))

    async def _upstream(self) -> Upstream:
        app, parts = self.app, self.path.split("/")[1:]
        # a path without a slash before it would go on with the name of the server
        if not self.path.startswith("/") or any(part in (".", "..") for part in parts):
            raise ApiError(404, "not_found", f"not found; {SERVED}")
        self._check_page()
        if parts[0] == "responses" and len(parts) > 1:
            return await app.stored.upstream_of(parts[1], is_conversation=False)
        if app.settings.other_paths:
            return app.upstreams[app.settings.other_paths]
        text = f"not found; {SERVED}. Use your client's chat mode, or start the router with --other_paths inferior or "
        raise ApiError(404, "not_found", f"{text}superior to pass other paths on to that model's server")

    def _check_page(self) -> None:
        """Refuse what a web page of another origin can send without asking: forms and files."""
        content_type = self.headers.get(b"content-type", b"application/json")
        is_json = content_type.lower().startswith(b"application/json")
        if b"origin" in self.headers and not is_json and not self.app.settings.access.allows_origin(self.headers):
            raise ApiError(403, "unknown_origin", "web pages may not ask; name their origin with --allowed_origins")
