"""What the endpoint keeps of each request: a log line, metrics for Prometheus and, on demand, a row of a decision log.

No key is ever among them, and no text of a prompt but in the decision log with `log_prompts`. The row has the names
of batch scoring, and `prompt` is the text that was scored (the user's turns), so that batch
scoring, finetuning_model/choose_threshold.py and create_dataset/label_prompts.py read the log as it is.
"""

import atexit
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.endpoint.upstreams import Answer, Headers, Upstream
from router_data import TIER_NAMES, InputError, RowAppender
from router_model import Decision

LOG = logging.getLogger("router")
SCORE_BUCKETS = [i / 20 for i in range(1, 21)]
DECISION_BUCKETS = [0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5]
FIRST_BYTE_BUCKETS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300]
USAGE_BYTES = 8192  # an answer's usage stands in its last bytes
LABEL_OF_TIER = {tier: label for label, tier in TIER_NAMES.items()}
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass
class Record:
    """One request, filled in as it goes."""

    requested_model: str = "-"  # "router", "inferior" or "superior"
    upstream: Upstream | None = None  # where it was routed to
    threshold: float | None = None
    decision: Decision | None = None  # None where nothing had to be scored
    prompt: str | None = None  # what the user wrote, for the decision log
    answer: Answer | None = None
    failures: list[str] = field(default_factory=list)  # of the models that were asked and down
    status: int = 0  # HTTP, as the client got it
    error: str | None = None
    tail: bytes = b""  # of the answer
    stream_finished: bool = False  # a stream's last event has gone to the client
    decision_seconds: float = 0.0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)

    @property
    def fallback(self) -> str | None:
        """Why another model answers than the one routed to: "inferior: status 503"."""
        return "; ".join(self.failures) if self.answer and self.failures else None

    def headers(self) -> Headers:
        """What was decided, for the client."""
        if self.upstream is None:
            return []
        upstream = self.answer.upstream if self.answer else self.upstream
        headers = {"model": upstream.name, "upstream-model": upstream.model}
        if self.decision:
            headers["score"] = f"{self.decision.router_score:.6f}"
            headers["threshold"] = f"{self.decision.threshold:g}"
            headers["truncated"] = str(self.decision.truncated).lower()
            if self.decision.unfamiliar:
                headers["unfamiliar"] = "true"
        if self.fallback:
            headers["fallback"] = self.fallback
        return [(f"x-router-{name}".encode(), value.encode()) for name, value in headers.items()]

    def line(self) -> str:
        """The log line: what was decided and how it went; nothing that the client wrote."""
        parts = {
            "model": self.requested_model,
            "route": self.upstream.name if self.upstream else "-",
            "status": self.status,
        }
        if self.answer:
            parts |= {"answered_by": self.answer.upstream.name, "upstream_model": self.answer.upstream.model}
        if self.decision:
            parts["score"] = f"{self.decision.router_score:.4f}"
            parts["threshold"] = f"{self.decision.threshold:g}"
            parts["truncated"] = str(self.decision.truncated).lower()
            parts["decision_ms"] = f"{1000 * self.decision_seconds:.1f}"
        if self.answer:
            parts["first_byte_ms"] = f"{1000 * self.answer.seconds:.0f}"
        parts["total_ms"] = f"{1000 * (time.perf_counter() - self.started):.0f}"
        if self.fallback:
            parts["fallback"] = f'"{self.fallback}"'
        if self.error:
            parts["error"] = self.error
        return " ".join(f"{name}={value}" for name, value in parts.items())

    def row(self, router: str, log_prompt: bool) -> dict:
        """The row of the decision log; `router` is the checkpoint's name."""
        decision = self.decision
        return {
            "time": self.at.isoformat(timespec="milliseconds"),
            "model": self.requested_model,
            "router_label": LABEL_OF_TIER[self.upstream.name],
            "router_score": decision and round(decision.router_score, 6),
            "threshold": decision and decision.threshold,
            "router": router,
            "truncated": bool(decision and decision.truncated),
            "tokens_scored": decision.tokens_scored if decision else 0,
            "characters_received": decision.characters_received if decision else 0,
            "unfamiliar": bool(decision and decision.unfamiliar),
            "answered_by": self.answer and self.answer.upstream.name,
            "upstream_model": self.answer and self.answer.upstream.model,
            "fallback": self.fallback,
            "status": self.status,
            "error": self.error,
            "decision_seconds": round(self.decision_seconds, 6),
            "first_byte_seconds": self.answer and round(self.answer.seconds, 6),
            "latency_seconds": round(time.perf_counter() - self.started, 6),
            "usage": usage_in(self.tail),
        } | ({"prompt": self.prompt} if log_prompt else {})


def usage_in(tail: bytes) -> dict | None:
    """The token counts that stand in the last bytes of an answer, streamed or not; None where they don't."""
    for match in reversed(list(re.finditer(rb'"usage"\s*:\s*(?=\{)', tail))):
        try:
            usage, _ = json.JSONDecoder().raw_decode(tail[match.end() :].decode("utf-8", "replace"))
        except ValueError:
            continue
        return {name: usage[name] for name in USAGE_FIELDS if isinstance(usage.get(name), int)} or None
    return None


class Metrics:
    """The counters and histograms of one endpoint, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def make(kind, name: str, text: str, labels: Sequence[str] = (), **more):
            return kind(f"router_{name}", text, labels, registry=self.registry, **more)

        self.decisions = make(
            Counter,
            "decisions",
            "Requests by the model asked for, the route and its model",
            ("requested_model", "route", "model"),
        )
        self.fallbacks = make(Counter, "fallbacks", "Answers of another model than the one routed to", ("answered_by",))
        self.errors = make(Counter, "errors", "Requests that failed, by the reason", ("reason",))
        self.responses = make(Counter, "responses", "Responses by HTTP status", ("status",))
        self.in_flight = make(Gauge, "in_flight", "Requests under way")
        self.score = make(Histogram, "score", "The router's score of each prompt", buckets=SCORE_BUCKETS)
        self.decision_time = make(
            Histogram, "decision_seconds", "Time to decide, waiting included", buckets=DECISION_BUCKETS
        )
        self.first_byte = make(
            Histogram,
            "upstream_first_byte_seconds",
            "Time to the first byte of the model that answered",
            ("upstream",),
            buckets=FIRST_BYTE_BUCKETS,
        )

    def count(self, record: Record) -> None:
        """Count a request that has ended."""
        if record.upstream:
            self.decisions.labels(record.requested_model, record.upstream.name, record.upstream.model).inc()
        if record.decision:
            self.score.observe(record.decision.router_score)
            self.decision_time.observe(record.decision_seconds)
        if record.answer:
            self.first_byte.labels(record.answer.upstream.name).observe(record.answer.seconds)
            if record.fallback:
                self.fallbacks.labels(record.answer.upstream.name).inc()
        if record.error:
            self.errors.labels(record.error).inc()
        self.responses.labels(record.status).inc()


class DecisionLog:
    """Appends rows to a JSONL file from a thread of its own; no request waits for the disk.

    Every row is one write to the end of the file, so several replicas may share it. `close` returns when all rows are
    written; at the interpreter's exit it is called if nobody did.

    Raises:
        InputError: the file can't be written.
    """

    def __init__(self, path: Path):
        self._appender = RowAppender(path)
        self._rows: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="decision log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def append(self, row: dict) -> None:
        """Hand over a row; after `close` it is written at once."""
        if self._thread.is_alive():
            self._rows.put(row)
        else:
            self._write(row)

    def close(self) -> None:
        """Write what is left."""
        self._rows.put(None)
        self._thread.join()
        while not self._rows.empty():  # handed over while the thread ended
            if (row := self._rows.get()) is not None:
                self._write(row)

    def _write_all(self) -> None:
        while (row := self._rows.get()) is not None:
            self._write(row)

    def _write(self, row: dict) -> None:
        try:
            self._appender.append(row)
        except InputError as error:  # a full disk; answering goes on
            LOG.error("a row of the decision log is lost: %s", error)
