"""The endpoint as an ASGI application: which routes there are, what a request goes through, and which errors it meets.

    app = EndpointApp(Router.load(model_save_dir), Settings(inferior=Upstream(...), superior=Upstream(...)))

Written against ASGI itself, so that an answer's bytes go from one connection to the other with nothing between. What is
kept between requests only saves time: the same conversation takes the same route on any replica.
"""

import asyncio
import json
import math
import os
import signal
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import prometheus_client

from inference.endpoint.apis import (
    APIS,
    ApiError,
    Headers,
    Receive,
    Scope,
    Send,
    below_v1,
    respond,
    respond_with_error,
)
from inference.endpoint.bodies import BodyReader
from inference.endpoint.exchange import Exchange, OtherExchange
from inference.endpoint.records import LOG, DecisionLog, Metrics, Record
from inference.endpoint.settings import Settings
from inference.endpoint.shadow import Job, Shadow
from inference.endpoint.stored import StoredObjects
from inference.endpoint.upstreams import UpstreamClient, is_down
from inference.sessions import Sessions
from router_data import printable
from router_model import MAX_CORES, Router, parse_router_model

MODEL_NAMES = "router, router-<threshold> (such as router-0.35), inferior and superior"


class EndpointApp:
    """Decides, forwards, passes the answer back.

    Args:
        router: the checkpoint.
        settings: everything else.
        load_router: loads the checkpoint that takes its place, when the process gets SIGHUP; None ignores the signal.

    Attributes:
        router: the checkpoint in use.
        threshold: of the model `router`.
        in_flight: requests under way.
    """

    def __init__(self, router: Router, settings: Settings, load_router: Callable[[], Router] | None = None) -> None:
        self.settings, self._load_router = settings, load_router
        self.upstreams = {upstream.name: upstream for upstream in (settings.inferior, settings.superior)}
        self.metrics = Metrics()
        self.log = DecisionLog(settings.decision_log) if settings.decision_log else None
        self.in_flight = 0
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.measures = any(each.max_input_tokens or each.inputs is not None for each in self.upstreams.values())
        self._executor: ThreadPoolExecutor | None = None
        self._reloading = asyncio.Lock()
        self._use(router)

    # --- starting, stopping, another checkpoint ---

    def _use(self, router: Router) -> None:
        self.router = router
        self.checkpoint = router.model_save_dir.resolve().name if router.model_save_dir else "-"
        self.threshold = router.settings.threshold if self.settings.threshold is None else self.settings.threshold
        self.sessions = Sessions(router, self.settings.sticky, self._executor)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        # Scoring releases Python's lock for most of its time, so the event loop goes on meanwhile on another core.
        self._executor = ThreadPoolExecutor(min(MAX_CORES, os.cpu_count() or 1), thread_name_prefix="router")
        self._use(self.router)
        self.bodies = BodyReader()
        settings, upstreams = self.settings, list(self.upstreams.values())
        async with UpstreamClient(upstreams, settings.timeout, settings.retries, settings.forward_headers) as client:
            self.client = client
            self.stored = StoredObjects(client, upstreams)
            self.shadow = Shadow(client, settings.shadow_share, settings.shadow_max_requests, self._end_shadow)
            self._watch_for_reload()
            await send({"type": "lifespan.startup.complete"})
            self.bodies.warm_up()
            await receive()
            await self.shadow.close()
        self.bodies.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self.log:
            await asyncio.to_thread(self.log.close)
        if settings.tracing:
            await asyncio.to_thread(settings.tracing.close)
        await send({"type": "lifespan.shutdown.complete"})

    def _watch_for_reload(self) -> None:
        loop = asyncio.get_running_loop()
        if self._load_router and hasattr(signal, "SIGHUP"):
            with suppress(RuntimeError, ValueError):  # signals reach the main thread only
                loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self.reload()))

    async def reload(self) -> bool:
        """Take the checkpoint that is there now; a broken one is refused, and the one in use stays.

        Requests under way end with the checkpoint that they began with.

        Returns:
            Whether it was taken.
        """
        assert self._load_router
        async with self._reloading:
            try:
                router = await asyncio.to_thread(self._load_router)
                if not all(math.isfinite(score) for score in router.score(["Is this checkpoint whole?"])):
                    raise ValueError("its scores are no numbers")
            except Exception as error:  # whatever is wrong with a folder of files
                self.metrics.reloads.labels("refused").inc()
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                LOG.error("the new checkpoint is refused, %s stays: %s", self.checkpoint, printable(reason))
                return False
            self._use(router)
            self.metrics.reloads.labels("taken").inc()
            LOG.info("took checkpoint %s (%s), threshold %g", self.checkpoint, router.backend, self.threshold)
            return True

    # --- requests ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path = below_v1(scope["path"].rstrip("/")) or "/"
        api = APIS.get(path)
        access = self.settings.access
        if access.allows_origin(headers):
            send = with_headers(send, access.origin_headers(headers))
        try:
            access.check_host(scope["headers"])
            if api and scope["method"] == "POST":
                await Exchange(self, path, scope, headers, receive, send).run()
            elif not await self._answer_itself(path, scope["method"], headers, send):
                if api:
                    raise ApiError(405, "method_not_allowed", f"{path} takes POST", headers={"allow": "POST"})
                access.check_key(headers)
                await OtherExchange(self, path, scope, headers, receive, send).run()
        except ApiError as error:
            await respond_with_error(send, error, bool(api and api.is_anthropic) or b"anthropic-version" in headers)

    async def _answer_itself(self, path: str, method: str, headers: dict[bytes, bytes], send: Send) -> bool:
        """Answer what needs no model; False where that is not asked."""
        access = self.settings.access
        if method == "OPTIONS":
            if not access.allows_origin(headers):
                raise ApiError(
                    405, "method_not_allowed", "no web page may ask here; name its origin with --allowed_origins"
                )
            await respond(send, 204, b"", access.preflight_headers(headers))
            return True
        is_model = path.startswith("/models/")
        if not (is_model or path in ("/models", "/health", "/metrics")):
            return False
        if method not in ("GET", "HEAD"):
            raise ApiError(405, "method_not_allowed", f"{path} takes GET", headers={"allow": "GET"})
        if path != "/health":
            access.check_key(headers)
        if path == "/metrics":
            content_type = [(b"content-type", prometheus_client.CONTENT_TYPE_LATEST.encode())]
            await respond(send, 200, prometheus_client.generate_latest(self.metrics.registry), content_type)
        elif path == "/health":
            await respond(send, 200, json.dumps(self._health(headers)).encode())
        else:
            found = self._model(path.removeprefix("/models/")) if is_model else self._models()
            await respond(send, 200, json.dumps(found).encode())
        return True

    def _health(self, headers: dict[bytes, bytes]) -> dict[str, object]:
        """How it is; who has no key where one is needed learns no more than that it is up."""
        try:
            self.settings.access.check_key(headers)
        except ApiError:
            return {"status": "ok"}
        about = {"checkpoint": self.checkpoint, "backend": self.router.backend}
        return {"status": "ok", "in_flight": self.in_flight, "threshold": self.threshold} | about

    def _models(self) -> dict[str, object]:
        offered = sorted({self.threshold, *self.router.settings.thresholds.values()})
        names = ["router", *(f"router-{threshold:g}" for threshold in offered), "inferior", "superior"]
        names += self.settings.aliases
        models = [model_object(name) for name in names]
        return {"object": "list", "data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]}

    def _model(self, name: str) -> dict[str, object]:
        self.parse_model(name)
        return model_object(name)

    def parse_model(self, name: str) -> tuple[str, float | None]:
        """Which of the models is asked for, "router", "inferior" or "superior", and the threshold in its name.

        Raises:
            ApiError: none of them.
        """
        meant = self.settings.aliases.get(name, name)
        if meant in self.upstreams:
            return meant, None
        is_router, threshold = parse_router_model(meant)
        if is_router:
            return "router", threshold
        raise ApiError(404, "model_not_found", f"no model {name[:80]!r} here; there are {MODEL_NAMES}", "model")

    # --- what is kept of them ---

    def finish(self, record: Record, job: Job | None = None) -> None:
        """Keep what is to be kept of a request that has ended; start its shadow."""
        LOG.info(record.line())
        self.metrics.count(record)
        for failure in record.failures:
            self.shadow.note_trouble(failure.partition(":")[0])
        if record.answer and is_down(record.status):
            self.shadow.note_trouble(record.answer.upstream.name)
        if job and record.status == 200 and not record.error:
            self.shadow.start(job)
        else:
            self._append_row(record)

    def _end_shadow(self, record: Record, result: str) -> None:
        self.metrics.shadows.labels(result).inc()
        self._append_row(record)

    def _append_row(self, record: Record) -> None:
        is_decision = record.decision or record.requested_model in self.upstreams
        is_complete = record.prompt or not self.settings.log_prompts
        if self.log and record.is_answer and record.upstream and is_decision and is_complete:
            self.log.append(record.row(self.checkpoint, self.settings.log_prompts))


def model_object(name: str) -> dict[str, object]:
    """A model as OpenAI's and Anthropic's lists have it."""
    in_openais = {"id": name, "object": "model", "created": 0, "owned_by": "llm-router"}
    return in_openais | {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def with_headers(send: Send, headers: Headers) -> Send:
    """`send` with further headers on every answer."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_headers
