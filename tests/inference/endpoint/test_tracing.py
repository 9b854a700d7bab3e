"""A span for each request, between the client's and the upstream's."""

import pytest
from openai_server import error
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, broken, endpoint

from inference.endpoint.tracing import Tracing, tracing_from_environment

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter():
    return pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()


@pytest.fixture
def traced(router, upstream, exporter):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with endpoint(router, upstream, tracing=Tracing(provider)) as running:
        yield running


def header(head: str, name: str) -> str:
    return next(line.split(": ", 1)[1] for line in head.split("\r\n") if line.lower().startswith(f"{name}: "))


def test_the_span_lies_between_the_clients_and_the_upstreams(traced, upstream, exporter):
    traced.ask(EASY_PROMPT, extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
    [span] = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT
    assert header(upstream.headers[-1], "traceparent") == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert header(upstream.headers[-1], "tracestate") == "a=b"
    found = span.attributes
    assert span.name == "POST /v1/chat/completions" and found["http.response.status_code"] == 200
    assert (found["router.route"], found["gen_ai.response.model"]) == ("inferior", "small")
    assert 0 <= found["router.score"] < 0.5 and "apple" not in str(dict(found))


def test_a_fault_stands_in_the_span(traced, upstream, exporter):
    upstream.behave = broken("large", by=error(500))
    with pytest.raises(Exception, match="no"):
        traced.ask(HARD_PROMPT)
    [span] = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "upstream_500" and not span.status.is_ok
    assert len(header(upstream.headers[-1], "traceparent")) == 55  # of its own where the client has none


def test_without_a_place_for_spans_there_are_none(monkeypatch, router, upstream):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing_from_environment() is None
    with endpoint(router, upstream) as running:
        running.ask(EASY_PROMPT, extra_headers={"traceparent": "as it came"})
    assert header(upstream.headers[-1], "traceparent") == "as it came"


def test_a_place_for_spans_makes_them_go_there(monkeypatch, exporter):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = tracing_from_environment()
    assert isinstance(tracing, Tracing)
    tracing.close()
