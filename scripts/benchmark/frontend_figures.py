"""What a run of the frontend's benchmark is reduced to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from .course import Course
from .errors import BenchmarkError
from .figures import percentile
from .http_client import Arrival
from .machine import Load, Memory

STEP = re.compile(r" ([0-9]{5})")  # the text of a paced worker's token
NUM_PARTS = 4  # of the window, the first and the last of which tell whether lag grows


@dataclass(frozen=True, slots=True)
class Window:
    """The steady state: from when to when, and what the frontend spent."""

    begin_s: float
    end_s: float
    cpu_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.begin_s

    def has(self, moment_s: float) -> bool:
        return self.begin_s <= moment_s < self.end_s

    def part(self, moment_s: float) -> int:
        return int(NUM_PARTS * (moment_s - self.begin_s) / self.duration_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendFigures:
    """Of one run, or the medians of several. Lag is the time from a step's end at the worker to
    the last byte of the token's event at the client."""

    num_streams: float
    duration_s: float
    num_tokens: float
    tokens_per_s: float
    tokens_per_event: float
    bytes_per_token: float
    cpu_us_per_token: float
    core_percent: float
    lag_p50_ms: float
    lag_p99_ms: float
    lag_growth_ms: float
    step_ms: float
    worker_messaging_ms: float
    worker_engine_ms: float
    frontend_peak_mib: float
    foreign_cpu_percent: float
    load_average: float


LABELS = {  # and the decimals to show
    "num_streams": ("streams", 0),
    "duration_s": ("steady state, s", 1),
    "num_tokens": ("tokens in it", 0),
    "tokens_per_s": ("tokens/s", 0),
    "tokens_per_event": ("tokens per event", 3),
    "bytes_per_token": ("bytes per token", 0),
    "cpu_us_per_token": ("**frontend's CPU per token, µs**", 1),
    "core_percent": ("frontend's share of its core, %", 1),
    "lag_p50_ms": ("lag p50, ms", 1),
    "lag_p99_ms": ("lag p99, ms", 1),
    "lag_growth_ms": ("lag p50 of the last quarter less that of the first, ms", 1),
    "step_ms": ("step, ms", 2),
    "worker_messaging_ms": ("worker's CPU for messages per step, ms", 2),
    "worker_engine_ms": ("worker's CPU for the rest of a step, ms", 2),
    "frontend_peak_mib": ("frontend's memory, peak, MiB", 0),
    "foreign_cpu_percent": ("other programs' use of the machine, %", 1),
    "load_average": ("load average at the start", 2),
}


class Tally:
    """Reads the streams, one after the other."""

    def __init__(self, course: Course, window: Window) -> None:
        self._course = course
        self._window = window
        self._num_streams = 0
        self._num_bytes = 0
        self._num_events = 0
        self._lags_ms: list[list[float]] = [[] for _ in range(NUM_PARTS)]

    def take(self, arrivals: Iterator[Arrival], num_tokens: int) -> None:
        """Raises BenchmarkError when a token is missing, doubled, or in the wrong place."""
        self._num_streams += 1
        steps: list[int] = []
        for arrival in arrivals:
            told = [int(number) for number in STEP.findall(_text(arrival.event))]
            steps += told
            if told and self._window.has(arrival.arrived_s):
                self._count(arrival, told)
        if len(steps) != num_tokens or any(b != a + 1 for a, b in pairwise(steps)):
            raise BenchmarkError(f"a stream of {num_tokens} tokens came as {len(steps)}: {steps}")

    def figures(self, load: Load, memory: Memory) -> FrontendFigures:
        window, course = self._window, self._course
        lags = [lag for part in self._lags_ms for lag in part]
        steps = [i for i, made_s in enumerate(course.made_s) if window.has(made_s)]
        if not all(self._lags_ms) or len(steps) < 2:
            raise BenchmarkError("there was too little to measure: raise --seconds")
        made_s = course.made_s[steps[-1]] - course.made_s[steps[0]]
        return FrontendFigures(
            num_streams=self._num_streams,
            duration_s=window.duration_s,
            num_tokens=len(lags),
            tokens_per_s=len(lags) / window.duration_s,
            tokens_per_event=len(lags) / self._num_events,
            bytes_per_token=self._num_bytes / len(lags),
            cpu_us_per_token=1e6 * window.cpu_s / len(lags),
            core_percent=100 * window.cpu_s / window.duration_s,
            lag_p50_ms=percentile(lags, 50),
            lag_p99_ms=percentile(lags, 99),
            lag_growth_ms=median(self._lags_ms[-1]) - median(self._lags_ms[0]),
            step_ms=1000 * made_s / (len(steps) - 1),
            worker_messaging_ms=1000 * fmean(course.messaging_s[i] for i in steps),
            worker_engine_ms=1000 * fmean(course.engine_s[i] for i in steps),
            frontend_peak_mib=memory.peak_mib,
            foreign_cpu_percent=load.foreign_cpu_percent,
            load_average=load.load_average,
        )

    def _count(self, arrival: Arrival, steps: list[int]) -> None:
        self._num_events += 1
        self._num_bytes += arrival.num_bytes
        part = self._lags_ms[self._window.part(arrival.arrived_s)]
        part += [1000 * (arrival.arrived_s - self._course.made_s[step]) for step in steps]


def _text(event: dict[str, Any]) -> str:
    """Of a chat or a completion."""
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for choice in event["choices"]
    )
