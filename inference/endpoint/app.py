"""The endpoint as an ASGI application: which routes there are, what a request goes through, and which errors it meets.

    app = create_app(Router.load(model_save_dir), Settings(inferior=Upstream(...), superior=Upstream(...)))

Nothing is kept between requests: the same conversation takes the same route on any replica.
"""

import asyncio
import hmac
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference.endpoint.records import LOG, USAGE_BYTES, DecisionLog, Metrics, Record
from inference.endpoint.upstreams import Headers, Upstream, UpstreamClient, UpstreamUnavailable
from router_data import TIER_NAMES, InputError
from router_model import MAX_CORES, Decision, Router, parse_router_model, scorable_turns, user_turns

INLINE_SCORING_MAX_CHARACTERS = 1000  # characters of a prompt that is scored in a few milliseconds
MAX_BODY_BYTES = 64 * 2**20  # bytes; images come as base64
MODEL_KEY = re.compile(rb'"model"\s*:\s*("(?:[^"\\]++|\\.)*+")')


@dataclass(frozen=True)
class Settings:
    """What the endpoint is told beside the checkpoint; the flags say what each means."""

    inferior: Upstream
    superior: Upstream
    threshold: float | None = None
    max_in_flight: int = 1000
    timeout: float = 300.0
    retries: int = 1
    fall_back_to_inferior: bool = False
    api_key: str | None = field(default=None, repr=False)
    decision_log: Path | None = None
    log_prompts: bool = False


class ApiError(Exception):
    """An error in OpenAI's form."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers

    def response(self, headers: Headers = ()) -> Response:
        kind = "invalid_request_error" if self.status < 429 else "router_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        response = JSONResponse({"error": error}, self.status, self.headers)
        response.raw_headers.extend(headers)
        return response


class ClientGone(Exception):
    """The client closed its connection before the request was whole."""


def create_app(router: Router, settings: Settings) -> Starlette:
    """The endpoint as an ASGI application."""
    chat = ChatCompletions(router, settings)

    def with_key(answer):
        async def handler(request: Request) -> Response:
            check_key(request.headers.get("authorization", ""), settings.api_key)
            return answer(request)

        return handler

    @with_key
    def models(request: Request) -> Response:
        offered = sorted({chat.threshold, *router.settings.thresholds.values()})
        names = ["router", *(f"router-{threshold:g}" for threshold in offered), "inferior", "superior"]
        return JSONResponse({"object": "list", "data": [model_object(name) for name in names]})

    @with_key
    def model(request: Request) -> Response:
        name = request.path_params["name"]
        parse_model(name)
        return JSONResponse(model_object(name))

    @with_key
    def metrics(request: Request) -> Response:
        return Response(
            prometheus_client.generate_latest(chat.metrics.registry),
            headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST},
        )

    async def health(request: Request) -> Response:
        about = {"checkpoint": router.model_save_dir.resolve().name, "backend": router.backend}
        return JSONResponse({"status": "ok", "in_flight": chat.in_flight, "threshold": chat.threshold} | about)

    async def on_api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        there = "there are POST /v1/chat/completions, GET /v1/models, GET /health and GET /metrics"
        code = "not_found" if error.status_code == 404 else "method_not_allowed"
        return ApiError(error.status_code, code, f"{error.detail}; {there}", headers=error.headers).response()

    async def on_bug(request: Request, error: Exception) -> Response:
        return ApiError(500, "internal_error", "the router failed; its log says why").response()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={ApiError: on_api_error, HTTPException: on_http_error, Exception: on_bug},
        lifespan=chat.lifespan,
    )


class ChatCompletions:
    """`POST /v1/chat/completions` as an ASGI application: decide, forward, pass the answer back.

    Written against ASGI itself, so that an answer's bytes go from one connection to the other with nothing between.
    """

    def __init__(self, router: Router, settings: Settings):
        self.router, self.settings = router, settings
        self.checkpoint = router.model_save_dir.resolve().name
        self.threshold = router.settings.threshold if settings.threshold is None else settings.threshold
        self.upstreams = {upstream.name: upstream for upstream in (settings.inferior, settings.superior)}
        self.metrics = Metrics()
        self.log = DecisionLog(settings.decision_log) if settings.decision_log else None
        self.in_flight = 0

    @asynccontextmanager
    async def lifespan(self, app: Starlette):
        # Scoring holds no lock of Python for most of its time, so the event loop goes on on another core.
        self.pool = ThreadPoolExecutor(min(MAX_CORES, os.cpu_count() or 1), thread_name_prefix="router")
        async with UpstreamClient(self.upstreams.values(), self.settings.timeout, self.settings.retries) as self.client:
            yield
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.log:
            await asyncio.to_thread(self.log.close)

    async def __call__(self, scope, receive, send) -> None:
        record = Record()
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            headers = dict(scope["headers"])
            check_key(headers.get(b"authorization", b"").decode("latin-1"), self.settings.api_key)
            if self.in_flight > self.settings.max_in_flight:
                raise ApiError(429, "too_many_requests", "too many requests at once", headers={"retry-after": "1"})
            await self._serve(scope, headers, receive, send, record)
        except ApiError as error:
            record.status, record.error = error.status, error.code
            await error.response(record.headers())(scope, receive, send)
        except ClientGone:
            record.status, record.error = 499, "client_gone"
        except asyncio.CancelledError:
            record.status, record.error = 503, "stopped"
            raise
        except Exception:
            record.status, record.error = 500, "internal_error"
            raise
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)
            self._keep(record)

    async def _serve(self, scope, headers: dict[bytes, bytes], receive, send, record: Record) -> None:
        # 1. The request, of which only the model and the user's turns matter here
        async with time_limit(self.settings.timeout):
            raw = await read_body(headers, receive)
        body = parse_body(raw)
        record.requested_model, threshold = parse_model(body.get("model"))

        # From here on, the client's going away ends the work, here and upstream.
        started = False
        async with cancelled_when_gone(receive) as connection:
            # 2. Which model
            record.upstream = await self._route(record, threshold, body.get("messages"))
            upstreams = self._in_order(record)
            bodies = {upstream.name: with_model(raw, body, upstream.model) for upstream in upstreams}

            # 3. Its answer, as it comes
            try:
                record.answer = await self.client.ask(upstreams, bodies, scope["headers"], scope["query_string"])
            except UpstreamUnavailable as error:
                record.failures = error.failures
                code = "upstream_timeout" if error.status == 504 else "upstream_unreachable"
                raise ApiError(error.status, code, f"no answer ({error})") from error
            record.failures, record.status = record.answer.failures, record.answer.status
            if record.status >= 400:
                record.error = f"upstream_{record.status}"
            started = True
            await self._pass_on(record, send)
        if connection.lost and not record.stream_finished:
            record.status, record.error = 499, "client_gone"
        elif connection.stopped:
            record.error = "stopped"
            if not started:
                raise ApiError(503, "stopped", "the router is being stopped")

    async def _route(self, record: Record, threshold: float | None, messages: object) -> Upstream:
        """Where the request goes: to the model requested_model for, else where the router sends the user's turns."""
        if record.requested_model != "router":
            if self.settings.log_prompts:
                with suppress(InputError, TypeError):
                    record.prompt = "\n\n".join(user_turns(messages))
            return self.upstreams[record.requested_model]
        turns = turns_to_score(messages)
        if turns is None:
            return self.upstreams["superior"]
        threshold = self.threshold if threshold is None else threshold
        record.prompt = "\n\n".join(turns) if self.settings.log_prompts else None
        started = time.perf_counter()
        # Score on the event loop when idle: handing over to a thread costs 0.4 ms
        if self.in_flight == 1 and sum(map(len, turns)) <= INLINE_SCORING_MAX_CHARACTERS:
            record.decision = self._decide(messages, threshold)
        else:
            loop = asyncio.get_running_loop()
            record.decision = await loop.run_in_executor(self.pool, self._decide, messages, threshold)
        record.decision_seconds = time.perf_counter() - started
        return self.upstreams[TIER_NAMES[record.decision.router_label]]

    def _decide(self, messages: list[dict], threshold: float) -> Decision:
        return self.router.decide([messages], threshold)[0]

    def _in_order(self, record: Record) -> list[Upstream]:
        """The models that may answer: a choice of the client's own is honoured, one of the router's can be mended."""
        if record.requested_model == "router" and record.upstream.name == "inferior":
            return [record.upstream, self.upstreams["superior"]]
        if record.requested_model == "router" and self.settings.fall_back_to_inferior:
            return [record.upstream, self.upstreams["inferior"]]
        return [record.upstream]

    async def _pass_on(self, record: Record, send) -> None:
        answer = record.answer
        keep_tail = self.log and b"content-encoding" not in dict(answer.headers)
        try:
            headers = answer.headers + record.headers()
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for chunk in answer.chunks():
                if keep_tail:
                    record.tail = (record.tail + chunk)[-USAGE_BYTES:]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                record.stream_finished = (
                    chunk[-20:].rstrip().endswith(b"[DONE]")
                )  # OpenAI's client leaves at this event
        except (aiohttp.ClientError, TimeoutError):
            # Without the end of the body the server breaks the connection: the client sees that something is missing.
            record.error = "stream_cut"
        else:
            await send({"type": "http.response.body", "body": b""})
        finally:
            answer.close()

    def _keep(self, record: Record) -> None:
        LOG.info(record.line())
        self.metrics.count(record)
        scored = record.decision or record.requested_model in self.upstreams
        if self.log and record.upstream and scored and (record.prompt or not self.settings.log_prompts):
            self.log.append(record.row(self.checkpoint, self.settings.log_prompts))


# --- what a client sends ---------------------------------------------------------------------------------------------


def check_key(authorization: str, api_key: str | None) -> None:
    """Raises ApiError where a key is needed and the header doesn't hold it."""
    token = authorization.removeprefix("Bearer ").strip()
    if api_key and not hmac.compare_digest(token.encode("latin-1"), api_key.encode()):
        raise ApiError(
            401, "invalid_api_key", "wrong or missing API key: send `Authorization: Bearer <ROUTER_API_KEY>`"
        )


async def read_body(headers: dict[bytes, bytes], receive) -> bytes:
    """The whole body.

    Raises:
        ApiError: it is not JSON by its header, compressed, or too large. ClientGone: it never came.
    """
    if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        # also what keeps web pages of other origins from spending money here: browsers ask before they send JSON
        raise ApiError(415, "unsupported_media_type", "send the body with `Content-Type: application/json`")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise ApiError(415, "unsupported_media_type", "send the body without a Content-Encoding")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise ApiError(413, "request_too_large", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


def parse_body(raw: bytes) -> dict:
    """The body's fields. Raises ApiError where it is not a JSON object."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, "invalid_json", f"the body is not JSON{where}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_json", "the body is not a JSON object")
    return body


def parse_model(name: object) -> tuple[str, float | None]:
    """Which of the models is requested_model for, "router", "inferior" or "superior", and the threshold in its name.

    Raises:
        ApiError: none of them.
    """
    if not isinstance(name, str):
        raise ApiError(400, "invalid_model", "`model` is missing or not a string", "model")
    if name in ("inferior", "superior"):
        return name, None
    is_router, threshold = parse_router_model(name)
    if is_router:
        return "router", threshold
    there = "router, router-<threshold> (such as router-0.35), inferior and superior"
    raise ApiError(404, "model_not_found", f"no model {name[:80]!r} here; there are {there}", "model")


def turns_to_score(messages: object) -> list[str] | None:
    """The texts of the user's turns; None where there is nothing to score. Raises ApiError where they are malformed."""
    if not isinstance(messages, list):
        raise ApiError(400, "invalid_messages", "`messages` is missing or not a list", "messages")
    if all(isinstance(message, dict) and message.get("role") not in (None, "user") for message in messages):
        return None
    try:
        return scorable_turns(messages)
    except InputError as error:
        raise ApiError(400, "invalid_messages", str(error), "messages") from None


def with_model(raw: bytes, body: dict, model: str) -> bytes:
    """The body with another model and not a byte else changed.

    Where the bytes leave a doubt which `model` is meant (another object in it has one too, or escapes could hide a
    second key), it is written anew from its fields.
    """
    found = list(MODEL_KEY.finditer(raw)) if rb"\u" not in raw else []
    if len(found) == 1:
        start, end = found[0].span(1)
        return raw[:start] + json.dumps(model).encode() + raw[end:]
    return json.dumps(body | {"model": model}).encode()


def model_object(name: str) -> dict:
    """A model in the form of OpenAI's list."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "llm-router"}


# --- connections -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def time_limit(seconds: float):
    """Raises ApiError 408 where the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ApiError(408, "request_timeout", f"the request did not arrive within {seconds:g} s") from None


@dataclass
class Connection:
    """How a block under `cancelled_when_gone` ended: its client left, or the server stopped."""

    lost: bool = False
    stopped: bool = False


@asynccontextmanager
async def cancelled_when_gone(receive):
    """Cancels the block when the client goes away; also ends it quietly where the server cancels it."""
    connection, task = Connection(), asyncio.current_task()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        connection.lost = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield connection
    except asyncio.CancelledError:
        task.uncancel()
        connection.stopped = not connection.lost
    finally:
        watching.cancel()
