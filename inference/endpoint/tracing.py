"""A span of OpenTelemetry for each request, where the packages of requirements/otel.txt are installed.

Without them `traceparent` passes through as the client sent it. With them the span is a child of the client's, the
upstream's request a child of the span, and OTEL_EXPORTER_OTLP_ENDPOINT says where spans go.
"""

import os
from typing import Any

from inference.endpoint.apis import Headers
from inference.endpoint.records import Record
from router_data import InputError

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Starts and ends the span of each request.

    Args:
        provider: OpenTelemetry's tracer provider.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("llm-router")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, name: str, headers: Headers) -> Any:
        """The span of a request, a child of the one that its `traceparent` names."""
        from opentelemetry.trace import SpanKind

        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key.startswith(b"trace")}
        return self._tracer.start_span(name, self._propagator.extract(carrier), SpanKind.SERVER)

    def outgoing(self, span: Any, headers: Headers) -> Headers:
        """The headers for the upstream: with this span in the place of the client's."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        others = [(key, value) for key, value in headers if key not in (b"traceparent", b"tracestate")]
        return [*others, *((key.encode(), value.encode()) for key, value in carrier.items())]

    def end(self, span: Any, record: Record) -> None:
        """End the span with what was decided and how it went; nothing that the client wrote."""
        from opentelemetry.trace import Status, StatusCode

        answered_by = record.answer.upstream if record.answer else None
        attributes: dict[str, Any] = {
            "http.response.status_code": record.status,
            "gen_ai.request.model": record.requested_model,
            "gen_ai.response.model": answered_by and answered_by.model,
            "router.route": record.upstream and record.upstream.name,
            "router.answered_by": answered_by and answered_by.name,
            "router.score": record.decision and record.decision.router_score,
            "router.threshold": record.decision and record.decision.threshold,
            "router.remembered": record.route and record.route.remembered,
            "router.decision_seconds": record.decision_seconds,
            "router.reason": record.reason,
            "router.fallback": record.fallback,
            "error.type": record.error,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if record.error:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def tracing_from_environment() -> Tracing | None:
    """Tracing where the environment says where spans go, else None.

    Raises:
        InputError: it does, and the packages are not there.
    """
    variable = next((name for name in ENDPOINT_VARIABLES if os.environ.get(name, "").strip()), None)
    if variable is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InputError(
            f"{variable} is set, but OpenTelemetry is not installed: python3 -m pip install -r requirements/otel.txt"
        ) from error
    os.environ.setdefault("OTEL_SERVICE_NAME", "llm-router")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
