"""GET /metrics: what the worker tells of itself and what callers see, for Prometheus.

The suffixes are vLLM's, so that dashboards carry over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from ...shared.messages import WorkerStats
from ...shared.steps import PHASES
from ..client import AsyncClient
from ..results import Delta

TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
ITL_S = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 5)
QUEUE_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
E2E_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)


class Metrics:
    """One registry for each app."""

    def __init__(self, client: AsyncClient) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_WorkerCollector(client))
        self.ttft = self._histogram("time_to_first_token", "Request to first token.", TTFT_S)
        self.itl = self._histogram("inter_token_latency", "Token to token.", ITL_S)
        self.e2e = self._histogram("e2e_request_latency", "Request to last token.", E2E_S)
        self.queue_time = self._histogram(
            "request_queue_time", "At the worker, until its first step.", QUEUE_S
        )
        self._finished = Counter(
            "chairlift:request_success",
            "Generations that ended, by reason.",
            ["finished_reason"],
            registry=self.registry,
        )
        self._refused = Counter(
            "chairlift:http_refusals",
            "HTTP requests that failed before an answer began, by error code.",
            ["code"],
            registry=self.registry,
        )
        self._answered = Counter(
            "chairlift:http_requests",
            "HTTP requests, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full_name = f"chairlift:{name}_seconds"
        return Histogram(full_name, text, buckets=buckets, registry=self.registry)

    def answered(self, method: str, route: str, status: int) -> None:
        self._answered.labels(method, route, str(status)).inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def finished(self, reason: str) -> None:
        self._finished.labels(reason).inc()


class Stopwatch:
    """Times one generation, from the moment it is asked for; of one that was asked for before,
    only the end counts."""

    def __init__(self, metrics: Metrics, *, is_timed: bool = True) -> None:
        self._metrics = metrics
        self._is_timed = is_timed
        self._start = time.monotonic()
        self._last: float | None = None

    def saw(self, delta: Delta) -> None:
        now = time.monotonic()
        if delta.token_ids and self._is_timed:
            if self._last is None:
                self._metrics.ttft.observe(now - self._start)
            else:
                self._metrics.itl.observe((now - self._last) / len(delta.token_ids))
            self._last = now
        if delta.finish:
            if self._is_timed:
                self._metrics.e2e.observe(now - self._start)
            if delta.receipt is not None:
                self._metrics.queue_time.observe(delta.receipt.queued_us / 1e6)
            self._metrics.finished(delta.finish.reason)


class _WorkerCollector(Collector):
    """Asks the client's newest figures at scrape time."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        stats = self._client.stats
        used = stats.num_blocks - stats.num_free_blocks
        age = self._client.silence_s if self._client.worker else float("inf")
        yield _gauge("num_requests_running", "In the batch.", stats.num_running)
        yield _gauge("num_requests_waiting", "Not yet in it.", stats.num_waiting)
        yield _gauge("num_requests_orphaned", "Running without a reader.", stats.num_orphans)
        yield _gauge("num_waiting_tokens", "Of those not yet in it.", stats.num_waiting_tokens)
        yield _gauge("kv_cache_usage_perc", "0 to 1.", used / max(stats.num_blocks, 1))
        yield _gauge("step_age_seconds", "Since the worker's loop was last heard.", age)
        yield _counter("steps", "Iterations.", stats.num_steps)
        yield _counter(
            "prompt_tokens",
            "Computed, again after a preemption; not those from the cache.",
            stats.num_prompt_tokens,
        )
        yield _counter("generation_tokens", "Sampled.", stats.num_generation_tokens)
        yield _counter("num_preemptions", "Sequences put back.", stats.num_preemptions)
        yield _counter("prefix_cache_queries", "Tokens looked up.", stats.num_prefix_queries)
        yield _counter("prefix_cache_hits", "Tokens found.", stats.num_prefix_hits)
        yield _counter("spec_decode_num_draft_tokens", "Guessed.", stats.num_draft_tokens)
        yield _counter(
            "spec_decode_num_accepted_tokens", "Guessed right.", stats.num_accepted_tokens
        )
        yield _counter("malformed_messages", "Dropped.", stats.num_malformed_messages)
        text = "Of the loop; arrivals and publish also without steps."
        yield _counters("step_seconds", text, "phase", _phases_s(stats))
        yield _counters("tokens", "Those that steps were about.", "kind", _tokens(stats))
        refused = {code: float(count) for code, count in stats.num_refused}
        yield _counters(
            "requests_refused", "By the worker, before their first step.", "code", refused
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"chairlift:{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"chairlift:{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """One for each value of the label."""
    family = CounterMetricFamily(f"chairlift:{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _phases_s(stats: WorkerStats) -> dict[str, float]:
    """Nothing of a worker that was not heard yet."""
    return {phase: us / 1e6 for phase, us in zip(PHASES, stats.phases_us, strict=False)}


def _tokens(stats: WorkerStats) -> dict[str, float]:
    return {
        "prompt": stats.num_prompt_tokens,
        "cached": stats.num_prefix_hits,
        "generation": stats.num_generation_tokens,
        "draft": stats.num_draft_tokens,
        "accepted": stats.num_accepted_tokens,
    }


def metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def read_metrics() -> Response:
        """Figures in Prometheus' text format."""
        return Response(
            generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    return router
