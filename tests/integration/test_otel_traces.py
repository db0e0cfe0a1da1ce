"""`chairlift serve --otel-traces` against a collector."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.processes import serving

TIMEOUT_S = 30.0
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def collector() -> Iterator[tuple[str, SimpleQueue[bytes]]]:
    """Its address, and the bodies that came."""
    bodies: SimpleQueue[bytes] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_small = self.headers.get("content-encoding") == "gzip"
            bodies.put(gzip.decompress(body) if is_small else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def spans_of(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
    return [span for scope in scopes for span in scope.spans]


@pytest.mark.usefixtures("worker")
def test_spans_reach_a_collector(worker_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last request before the end too, under the name that the environment gives, in
    the trace of the caller."""
    with collector() as (url, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "llm")
        with serving(worker_address, otel_traces=True) as server:
            answer = httpx2.post(
                f"{server}/v1/completions",
                json={"prompt": "abc", "max_tokens": 5, "ignore_eos": True},
                headers={"traceparent": CALLER},
                timeout=TIMEOUT_S,
            )
            assert answer.status_code == 200
        body = bodies.get(timeout=TIMEOUT_S)
    assert b"llm" in body
    spans = {span.name.split()[0]: span for span in spans_of(body)}
    assert {"text_completion", "prefill", "decode"} <= spans.keys()
    request = spans["text_completion"]
    assert request.trace_id.hex() == CALLER.split("-")[1]
    assert spans["decode"].parent_span_id == request.span_id
    assert request.start_time_unix_nano <= spans["prefill"].start_time_unix_nano
    assert spans["decode"].end_time_unix_nano <= request.end_time_unix_nano


@pytest.mark.usefixtures("worker")
def test_a_collector_that_is_gone_costs_nothing(
    worker_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered, and the server ends in time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(worker_address, otel_traces=True) as server:
        body = {"prompt": "abc", "max_tokens": 2}
        answer = httpx2.post(f"{server}/v1/completions", json=body, timeout=TIMEOUT_S)
        assert answer.status_code == 200
