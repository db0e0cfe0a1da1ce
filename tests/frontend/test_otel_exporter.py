"""OpenTelemetry's spans: a request's, and its stages at the worker."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chairlift.frontend.api.otel_exporter import OtelExporter
from chairlift.frontend.api.spans import Span, Spans, unix_us
from chairlift.frontend.response_id import ResponseId
from chairlift.shared.logs import short_hash
from chairlift.shared.messages import Finish
from chairlift.shared.steps import Receipt
from tests.frontend.fake_client import FakeClient

RECEIPT = Receipt(
    queued_us=10_000,
    first_token_us=30_000,
    total_us=100_000,
    num_prompt_tokens=12,
    num_output_tokens=8,
    num_steps=9,
    num_mates=18,
)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make_span(**changes: object) -> Span:
    span = Span(
        "req-1",
        ResponseId.draw("chat"),
        1,
        "demo",
        arrived=5.0,
        submitted=5.01,
        first_token=5.05,
        ended=5.12,
        finishes={0: Finish("stop")},
        receipts={0: RECEIPT},
    )
    for name, value in changes.items():
        setattr(span, name, value)
    return span


def told(span: Span) -> dict[str, ReadableSpan]:
    """By name."""
    exporter = InMemorySpanExporter()
    exporting = OtelExporter(SimpleSpanProcessor(exporter))
    exporting.take(span)
    exporting.close()
    return {one.name: one for one in exporter.get_finished_spans()}


def test_a_request_and_its_stages() -> None:
    """The stages follow one another within the request, from when the worker got it."""
    span = make_span()
    spans = told(span)
    assert list(spans) == ["queue", "prefill", "decode", "chat demo"]
    request = spans["chat demo"]
    assert request.kind is SpanKind.SERVER
    assert request.start_time == 1000 * unix_us(5.0)
    assert request.end_time == 1000 * unix_us(5.12)
    borders = [1000 * (unix_us(5.01) + us) for us in (0, 10_000, 30_000, 100_000)]
    for number, name in enumerate(("queue", "prefill", "decode")):
        stage = spans[name]
        assert (stage.start_time, stage.end_time) == (borders[number], borders[number + 1])
        assert stage.parent is not None and request.context is not None
        assert stage.parent.span_id == request.context.span_id
        assert stage.attributes is not None
        assert stage.attributes["chairlift.request"] == short_hash(span.response_id.base)
    assert request.attributes is not None
    assert request.attributes["gen_ai.usage.input_tokens"] == 12
    assert request.attributes["gen_ai.usage.output_tokens"] == 8
    assert request.attributes["gen_ai.server.time_to_first_token"] == pytest.approx(0.05)
    assert request.status.status_code is StatusCode.UNSET


def test_the_callers_trace_goes_on() -> None:
    """A traceparent makes the request part of the caller's trace; nonsense begins its own."""
    request = told(make_span(traceparent=CALLER))["chat demo"]
    assert request.parent is not None
    assert f"{request.parent.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert told(make_span(traceparent="nonsense"))["chat demo"].parent is None


def test_failures_are_errors() -> None:
    """By their code, whatever became of other choices; a caller who left is none, and what never
    ran has no stages."""
    failed = Finish("error", code="deadline_exceeded")
    spans = told(make_span(finishes={0: failed, 1: Finish("stop")}, receipts={}, first_token=None))
    assert list(spans) == ["chat demo"]
    status = spans["chat demo"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "deadline_exceeded")
    assert told(make_span(is_abandoned=True, finishes={}))["chat demo"].status.is_unset


def test_the_workers_times_lie_within_the_requests(
    http: TestClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted from before the worker was asked: it may be done before we go on."""
    asked: list[float] = []
    ended: list[Span] = []
    generate = fake.generate

    def told(*args: Any) -> Any:
        asked.append(time.monotonic())
        return generate(*args)

    monkeypatch.setattr(fake, "generate", told)
    monkeypatch.setattr(Spans, "end", lambda _, span, **__: ended.append(span))
    assert http.post("/v1/completions", json={"prompt": "a", "n": 2}).status_code == 200
    (span,) = ended
    assert span.arrived <= span.submitted <= min(asked)
