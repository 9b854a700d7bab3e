"""What the endpoint keeps of each request: a log line, metrics for Prometheus and, on demand, a row of a decision log.

No key is ever among them, and no text of a prompt but in the decision log with `log_prompts`. The row has the names
of batch scoring, and `prompt` is the text that was scored (the user's turns), so that batch scoring,
finetuning_model/choose_threshold.py and create_dataset/label_prompts.py read the log as it is.
"""

import atexit
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.endpoint.apis import Headers
from inference.endpoint.upstreams import Answer, Upstream
from inference.sessions import Route, decision_headers
from router_data import TIER_NAMES, InputError, RowAppender
from router_model import Decision, UserTurns

LOG = logging.getLogger("router")
SCORE_BUCKETS = [i / 20 for i in range(1, 21)]
DECISION_BUCKETS = [0.0001, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5]
FIRST_BYTE_BUCKETS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300]
USAGE_BYTES = 8192  # an answer's usage stands in its last bytes; of Anthropic's streams partly in the first
USAGE_FIELDS = {
    "prompt_tokens": "prompt_tokens", "input_tokens": "prompt_tokens", "completion_tokens": "completion_tokens",
    "output_tokens": "completion_tokens", "total_tokens": "total_tokens",
}  # fmt: skip
LABEL_OF_TIER = {tier: label for label, tier in TIER_NAMES.items()}
ROW_FIELDS = ("time", "router_score", "threshold")  # by which a decision log is known
MAX_LOGGED_CHARACTERS = 32_000  # of a prompt or an answer in the decision log: its two ends are kept


@dataclass
class Record:
    """One request, filled in as it goes."""

    api: str = "-"
    is_answer: bool = True  # whether a model is to answer; else the request is only passed on, or measured
    requested_model: str = "-"  # "router", "inferior" or "superior"
    upstream: Upstream | None = None  # where it was routed to
    route: Route | None = None  # None where nothing had to be scored
    reason: str | None = None  # why the upstream was chosen, where the score did not decide
    prompt: str | None = None  # what the user wrote, for the decision log
    answer: Answer | None = None
    failures: list[str] = field(default_factory=list)  # of the models that were asked and gave no answer
    status: int = 0  # HTTP, as the client got it
    error: str | None = None
    head: bytes = b""  # of the answer
    tail: bytes = b""
    stream_finished: bool = False  # a stream's last event has gone to the client
    decision_seconds: float = 0.0
    answers: dict[str, str] = field(default_factory=dict)  # texts by the model's name, where the other was asked too
    shadow: dict[str, Any] | None = None  # how asking the other model went
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    @property
    def decision(self) -> Decision | None:
        """What the router decided; None where nothing had to be scored."""
        return self.route.decision if self.route else None

    @property
    def fallback(self) -> str | None:
        """Why another model answers than the one routed to: "inferior: status 503"."""
        return "; ".join(self.failures) if self.answer and self.failures else None

    @property
    def seconds(self) -> float:
        """How long the request took, or has taken so far."""
        return (self.ended or time.perf_counter()) - self.started

    def keep_prompt(self, turns: UserTurns) -> None:
        """Note what the user said."""
        self.prompt = shortened("\n\n".join(turns))

    def headers(self) -> Headers:
        """What was decided, for the client."""
        if self.upstream is None:
            return []
        upstream = self.answer.upstream if self.answer else self.upstream
        headers = {"model": upstream.name, "upstream-model": upstream.model}
        if self.decision:
            headers |= decision_headers(self.decision)
        if self.reason:
            headers["reason"] = self.reason
        if self.fallback:
            headers["fallback"] = self.fallback
        return [(f"x-router-{name}".encode(), value.encode()) for name, value in headers.items()]

    def line(self) -> str:
        """The log line: what was decided and how it went; nothing that the client wrote."""
        parts: dict[str, object] = {"api": self.api, "model": self.requested_model}
        parts |= {"route": self.upstream.name if self.upstream else "-", "status": self.status}
        if self.answer:
            parts |= {"answered_by": self.answer.upstream.name, "upstream_model": self.answer.upstream.model}
        if decision := self.decision:
            parts |= {"score": f"{decision.router_score:.4f}", "threshold": f"{decision.threshold:g}"}
            parts |= {
                "truncated": str(decision.truncated).lower(),
                "decision_ms": f"{1000 * self.decision_seconds:.1f}",
            }
        if self.answer:
            parts["first_byte_ms"] = f"{1000 * self.answer.seconds:.0f}"
        parts["total_ms"] = f"{1000 * self.seconds:.0f}"
        for name, text in (("reason", self.reason), ("failures", "; ".join(self.failures))):
            if text:
                parts[name] = f'"{text}"'
        if self.error:
            parts["error"] = self.error
        return " ".join(f"{name}={value}" for name, value in parts.items())

    def row(self, router: str, log_prompts: bool) -> dict[str, Any]:
        """The row of the decision log; `router` is the checkpoint's name."""
        decision = self.decision
        row = {
            "time": self.at.isoformat(timespec="milliseconds"),
            "api": self.api,
            "model": self.requested_model,
            "router_label": decision.router_label if decision else self.upstream and LABEL_OF_TIER[self.upstream.name],
            "router_score": decision and round(decision.router_score, 6),
            "threshold": decision and decision.threshold,
            "router": router,
            "truncated": bool(decision and decision.truncated),
            "framed": bool(decision and decision.framed),
            "unfamiliar": bool(decision and decision.unfamiliar),
            "tokens_scored": decision.tokens_scored if decision else 0,
            "characters_received": decision.characters_received if decision else 0,
            "decided_by_turn": self.route and self.route.turn,
            "remembered": bool(self.route and self.route.remembered),
            "reason": self.reason,
            "answered_by": self.answer and self.answer.upstream.name,
            "upstream_model": self.answer and self.answer.upstream.model,
            "fallback": self.fallback,
            "status": self.status,
            "error": self.error,
            "decision_seconds": round(self.decision_seconds, 6),
            "first_byte_seconds": self.answer and round(self.answer.seconds, 6),
            "latency_seconds": round(self.seconds, 6),
            "usage": usage_in(self.head, self.tail),
        }
        if log_prompts:
            row["prompt"] = self.prompt
            row |= {f"{name}_answer": shortened(text) for name, text in self.answers.items()}
        return row | ({"shadow": self.shadow} if self.shadow else {})


def shortened(text: str) -> str:
    """The text, or its two ends where it is too long for the decision log."""
    half = MAX_LOGGED_CHARACTERS // 2
    return text if len(text) <= MAX_LOGGED_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


def usage_in(head: bytes, tail: bytes) -> dict[str, int] | None:
    """The token counts in the first and the last bytes of an answer, streamed or not; None where there are none."""
    usage = next(_usages_in(head), {})
    for later in _usages_in(tail):
        usage = usage | later
    if "total_tokens" not in usage and len(usage) == 2:
        usage["total_tokens"] = sum(usage.values())
    return usage or None


def _usages_in(part: bytes) -> Iterator[dict[str, int]]:
    for match in re.finditer(rb'"usage"\s*:\s*(?=\{)', part):
        try:
            usage, _ = json.JSONDecoder().raw_decode(part[match.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        yield {ours: usage[name] for name, ours in USAGE_FIELDS.items() if isinstance(usage.get(name), int)}


class Metrics:
    """The counters and histograms of one endpoint, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"router_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"router_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Requests by the API asked", "api")
        self.decisions = counter(
            "decisions", "Requests by the model asked for, the route and its model", "requested_model", "route", "model"
        )
        self.remembered = counter("remembered_decisions", "Decisions for which nothing had to be scored")
        self.unfamiliar = counter("unfamiliar_prompts", "Prompts that the encoder cannot read")
        self.fallbacks = counter("fallbacks", "Answers of another model than the one routed to", "answered_by")
        self.failures = counter(
            "upstream_failures",
            "Models that were asked and gave no answer that could be passed on",
            "upstream",
            "reason",
        )
        self.errors = counter("errors", "Requests that failed, by the reason", "reason")
        self.responses = counter("responses", "Responses by HTTP status", "status")
        self.shadows = counter("shadow_requests", "Requests to the other model as well, by how they ended", "result")
        self.reloads = counter("reloads", "Checkpoints that were to replace the one in use, by how that went", "result")
        self.in_flight = Gauge("router_in_flight", "Requests under way", registry=self.registry)
        self.score = histogram("score", "The router's score of each prompt", SCORE_BUCKETS)
        self.decision_time = histogram("decision_seconds", "Time to decide, waiting included", DECISION_BUCKETS)
        self.first_byte = histogram(
            "upstream_first_byte_seconds",
            "Time to the first byte of the model that answered",
            FIRST_BYTE_BUCKETS,
            "upstream",
        )

    def count(self, record: Record) -> None:
        """Count a request that has ended."""
        self.requests.labels(record.api).inc()
        if record.upstream and record.is_answer:
            self.decisions.labels(record.requested_model, record.upstream.name, record.upstream.model).inc()
        if record.route and record.is_answer:
            self.score.observe(record.route.decision.router_score)
            self.decision_time.observe(record.decision_seconds)
            self.remembered.inc(record.route.remembered)
            self.unfamiliar.inc(record.route.decision.unfamiliar)
        if record.answer:
            self.first_byte.labels(record.answer.upstream.name).observe(record.answer.seconds)
            if record.fallback:
                self.fallbacks.labels(record.answer.upstream.name).inc()
        for failure in record.failures:
            self.failures.labels(*failure.split(": ", 1)).inc()
        if record.error:
            self.errors.labels(record.error).inc()
        self.responses.labels(record.status).inc()


class DecisionLog:
    """Appends rows to a JSONL file from a thread of its own; no request waits for the disk.

    Every row is one write to the end of the file, so several replicas may share it. `close` returns when all rows are
    written; at the interpreter's exit it is called if nobody did.

    Raises:
        InputError: the file can't be written, or is no decision log.
    """

    def __init__(self, path: Path) -> None:
        self._appender = RowAppender(path, ROW_FIELDS)
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
