"""What a run is reduced to: a few figures, and the course of its steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TypeVar

import msgspec

from .errors import BenchmarkError
from .machine import Load, Memory
from .workload import Request


@dataclass(slots=True)
class Exchange:
    """One request as its caller saw it; times in seconds of one clock.

    An arrival is what came at once: one token, or several where the reader was slower than the
    model or a step makes more than one.
    """

    request: Request
    submitted_s: float
    arrivals_s: list[float] = field(default_factory=list)
    num_arrived: list[int] = field(default_factory=list)  # tokens of each arrival
    num_output_tokens: int = 0  # as the server counts them

    def arrive(self, now_s: float, num_tokens: int) -> None:
        if self.arrivals_s and self.arrivals_s[-1] == now_s:  # one read brought several events
            self.num_arrived[-1] += num_tokens
            return
        self.arrivals_s.append(now_s)
        self.num_arrived.append(num_tokens)

    @property
    def ttft_ms(self) -> float:
        return 1000 * (self.arrivals_s[0] - self.submitted_s)

    @property
    def pauses_ms(self) -> list[float]:
        """Between one arrival and the next."""
        return [1000 * (later - earlier) for earlier, later in pairwise(self.arrivals_s)]

    @property
    def gaps_ms(self) -> list[float]:
        """One for each token after the first arrival: those that came at once share the pause."""
        counted = zip(self.pauses_ms, self.num_arrived[1:], strict=True)
        return [pause / count for pause, count in counted for _ in range(count)]


@dataclass(slots=True)
class Steps:
    """One entry a step: when it ended, since the start, and what it carried."""

    end_s: list[float] = field(default_factory=list)
    num_running: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run, or the medians of several. None is what the mode can't see."""

    num_requests: float
    num_prompt_tokens: float
    num_output_tokens: float
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    pause_p99_ms: float
    tokens_per_arrival: float
    num_steps: float | None = None
    tokens_per_step: float | None = None
    outside_forward_percent: float | None = None
    worker_peak_mib: float | None = None
    worker_end_mib: float | None = None
    frontend_peak_mib: float | None = None
    frontend_end_mib: float | None = None
    all_peak_mib: float | None = None
    foreign_cpu_percent: float
    load_average: float

    @property
    def in_short(self) -> str:
        return (
            f"{self.output_tokens_per_s:,.1f} output tokens/s in {self.duration_s:,.1f} s, "
            f"others used {self.foreign_cpu_percent:.1f} % of the CPU"
        )


LABELS = {  # and the decimals to show
    "num_requests": ("requests", 0),
    "num_prompt_tokens": ("prompt tokens", 0),
    "num_output_tokens": ("output tokens", 0),
    "duration_s": ("duration, s", 2),
    "output_tokens_per_s": ("output tokens/s", 1),
    "total_tokens_per_s": ("prompt and output tokens/s", 1),
    "ttft_p50_ms": ("time to first token p50, ms", 1),
    "ttft_p99_ms": ("time to first token p99, ms", 1),
    "itl_p50_ms": ("inter-token latency p50, ms", 1),
    "itl_p99_ms": ("inter-token latency p99, ms", 1),
    "pause_p99_ms": ("pause between arrivals p99, ms", 1),
    "tokens_per_arrival": ("output tokens per arrival", 3),
    "num_steps": ("steps", 0),
    "tokens_per_step": ("prompt and output tokens per step", 1),
    "outside_forward_percent": ("step time outside the forward pass, %", 1),
    "worker_peak_mib": ("worker's memory, peak, MiB", 0),
    "worker_end_mib": ("worker's memory, at the end, MiB", 0),
    "frontend_peak_mib": ("frontend's memory, peak, MiB", 0),
    "frontend_end_mib": ("frontend's memory, at the end, MiB", 0),
    "all_peak_mib": ("memory of all its processes, peak, MiB", 0),
    "foreign_cpu_percent": ("other programs' use of the machine, %", 1),
    "load_average": ("load average at the start", 2),
}
COMPARED = {
    "duration_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "pause_p99_ms",
    "num_steps",
    "tokens_per_step",
}


def ratio(ours: Figures, theirs: Figures, name: str) -> str:
    """Empty where there is nothing to compare."""
    one, other = getattr(ours, name), getattr(theirs, name)
    return f"{one / other:.2f}" if name in COMPARED and one is not None and other else ""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was seen of one run."""

    exchanges: list[Exchange]
    load: Load
    num_steps: int | None = None
    worker: Memory | None = None
    frontend: Memory | None = None
    together: Memory | None = None
    outside_forward_percent: float | None = None

    def figures(self) -> Figures:
        """Raises BenchmarkError when a request got fewer or more tokens than it asked for."""
        check_complete(self.exchanges)
        num_prompt = sum(len(exchange.request.prompt_token_ids) for exchange in self.exchanges)
        num_output = sum(exchange.num_output_tokens for exchange in self.exchanges)
        ttfts = [exchange.ttft_ms for exchange in self.exchanges]
        gaps = [gap for exchange in self.exchanges for gap in exchange.gaps_ms] or [0.0]
        pauses = [pause for exchange in self.exchanges for pause in exchange.pauses_ms] or [0.0]
        return Figures(
            num_requests=len(self.exchanges),
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
            duration_s=self.duration_s,
            output_tokens_per_s=num_output / self.duration_s,
            total_tokens_per_s=(num_prompt + num_output) / self.duration_s,
            ttft_p50_ms=percentile(ttfts, 50),
            ttft_p99_ms=percentile(ttfts, 99),
            itl_p50_ms=percentile(gaps, 50),
            itl_p99_ms=percentile(gaps, 99),
            pause_p99_ms=percentile(pauses, 99),
            tokens_per_arrival=num_output / sum(len(e.arrivals_s) for e in self.exchanges),
            num_steps=self.num_steps,
            tokens_per_step=(num_prompt + num_output) / self.num_steps if self.num_steps else None,
            outside_forward_percent=self.outside_forward_percent,
            worker_peak_mib=self.worker.peak_mib if self.worker else None,
            worker_end_mib=self.worker.now_mib if self.worker else None,
            frontend_peak_mib=self.frontend.peak_mib if self.frontend else None,
            frontend_end_mib=self.frontend.now_mib if self.frontend else None,
            all_peak_mib=self.together.peak_mib if self.together else None,
            foreign_cpu_percent=self.load.foreign_cpu_percent,
            load_average=self.load.load_average,
        )

    @property
    def duration_s(self) -> float:
        """From the first request to the last token."""
        first = min(exchange.submitted_s for exchange in self.exchanges)
        return max(exchange.arrivals_s[-1] for exchange in self.exchanges) - first


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one policy."""

    policy: str
    figures: Figures
    num_threads: int | None  # None: as many as torch takes by itself
    steps: Steps | None  # seen in process only


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


Row = TypeVar("Row")


def medians(rows: Sequence[Row]) -> Row:
    """Of several runs' figures, field by field."""
    kind = type(rows[0])
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # figures, a dataclass
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    middles = {
        name: None if None in values else statistics.median(values)
        for name, values in columns.items()
    }
    return msgspec.convert(middles, kind)


def check_complete(exchanges: Sequence[Exchange]) -> None:
    """Raises BenchmarkError when a request got fewer or more tokens than it asked for."""
    for exchange in exchanges:
        asked = exchange.request.num_output_tokens
        if exchange.num_output_tokens != asked:
            raise BenchmarkError(
                f"a request asked for {asked} tokens and got {exchange.num_output_tokens}: the "
                "figures would be worthless"
            )
