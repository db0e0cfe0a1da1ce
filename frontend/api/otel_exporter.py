"""OpenTelemetry: a span for each request that generated, and its stages at the worker below.

Names and attributes are those of the semantic conventions for generative AI, where they have any:
https://opentelemetry.io/docs/specs/semconv/gen-ai/. Where spans go is for the environment to say,
as for any exporter of OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ...).
"""

from __future__ import annotations

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ...shared.steps import Receipt
from ..response_id import Endpoint
from .spans import Span, unix_us

OPERATIONS: dict[Endpoint, str] = {
    "chat": "chat",
    "responses": "chat",
    "completions": "text_completion",
}
LAST_WORDS_S = 1.0
SERVICE = {"service.name": "chairlift"}  # unless the environment has a name

Attributes = dict[str, str | int | float | list[str]]


class OtelExporter:
    """Makes OpenTelemetry's spans of ours, and hands them to an exporter."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        resource = Resource(SERVICE).merge(Resource.create())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer("chairlift")

    def take(self, span: Span) -> None:
        """A request that has ended."""
        caller = TraceContextTextMapPropagator().extract({"traceparent": span.traceparent})
        operation = OPERATIONS[span.response_id.endpoint]
        told = self._tracer.start_span(
            f"{operation} {span.model}",
            caller,
            SpanKind.SERVER,
            _attributes(span, operation),
            start_time=_ns(span.arrived),
        )
        if span.failure:
            told.set_status(Status(StatusCode.ERROR, span.failure))
        inside = set_span_in_context(told)
        for index, receipt in sorted(span.receipts.items()):
            for name, begin_us, end_us in _stages(receipt):
                stage = self._tracer.start_span(
                    name,
                    inside,
                    attributes=_of_receipt(span.hashes[index], receipt),
                    start_time=_ns(span.submitted) + 1000 * begin_us,
                )
                stage.end(_ns(span.submitted) + 1000 * end_us)
        told.end(_ns(span.ended))

    def close(self) -> None:
        """Sends what is left, or gives up: an exporter would try for longer than a server has."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_WORDS_S)


def _stages(receipt: Receipt) -> list[tuple[str, int, int]]:
    """Name, begin and end, in microseconds since the request came to the worker."""
    first = receipt.total_us if receipt.first_token_us is None else receipt.first_token_us
    began = min(receipt.queued_us, first)
    stages = [("queue", 0, began), ("prefill", began, first), ("decode", first, receipt.total_us)]
    return [stage for stage in stages if stage[2] > stage[1]]


def _attributes(span: Span, operation: str) -> Attributes:
    receipts = span.receipts.values()
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "chairlift",
        "gen_ai.request.model": span.model,
        "gen_ai.response.finish_reasons": [f.reason for _, f in sorted(span.finishes.items())],
        "gen_ai.usage.input_tokens": sum(receipt.num_prompt_tokens for receipt in receipts),
        "gen_ai.usage.output_tokens": sum(receipt.num_output_tokens for receipt in receipts),
        "chairlift.request_id": span.request_id,
        "chairlift.requests": span.hashes,
    }
    if span.first_token is not None:
        attributes["gen_ai.server.time_to_first_token"] = span.first_token - span.arrived
    if span.failure:
        attributes["error.type"] = span.failure
    return attributes


def _of_receipt(request: str, receipt: Receipt) -> Attributes:
    return {
        "chairlift.request": request,
        "chairlift.num_steps": receipt.num_steps,
        "chairlift.num_chunks": receipt.num_chunks,
        "chairlift.num_preemptions": receipt.num_preemptions,
        "chairlift.num_cached_tokens": receipt.num_cached_tokens,
        "chairlift.mean_mates": receipt.mean_mates,
    }


def _ns(seconds: float) -> int:
    return 1000 * unix_us(seconds)
