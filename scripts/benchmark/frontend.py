"""The frontend alone: what a streamed token costs it, and whether it keeps up with the worker.

A real frontend has a core to itself. A worker without a model, which keeps a pace, and the client
share the others.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import uvloop

from .course import Course
from .errors import BenchmarkError
from .frontend_figures import FrontendFigures, Tally, Window
from .http_client import RawExchange, exchange, post
from .machine import LoadMeter, Memory, cpu_s
from .processes import flags, free_port, running, wait_until_healthy

Variant = Literal["chat", "logprobs", "completions"]
NUM_LOGPROBS = 5
SETTLE_S = 1.0  # from the last stream's beginning to the measurement
SLACK_S = 5.0  # in which all streams must have begun, and that they go on afterwards


@dataclass(frozen=True, slots=True)
class FrontendJob:
    """So many streams of one kind, for so long."""

    variant: Variant
    num_streams: int
    step_ms: float
    seconds: float
    timeout_s: float

    @property
    def num_tokens(self) -> int:
        """Of each stream."""
        return round(1000 * (self.seconds + SETTLE_S + SLACK_S) / self.step_ms)

    def message(self) -> bytes:
        fields: dict[str, Any] = {"max_tokens": self.num_tokens, "stream": True}
        if self.variant == "completions":
            return post("/v1/completions", fields | {"prompt": [1, 2, 3]})
        if self.variant == "logprobs":
            fields |= {"logprobs": True, "top_logprobs": NUM_LOGPROBS}
        messages = [{"role": "user", "content": "Count."}]
        return post("/v1/chat/completions", fields | {"messages": messages})


@dataclass(frozen=True, slots=True)
class FrontendRun:
    job: FrontendJob
    figures: FrontendFigures


def measure(job: FrontendJob) -> FrontendRun:
    """Raises BenchmarkError unless every stream comes whole."""
    with tempfile.TemporaryDirectory(prefix="chairlift-bench-") as name:
        course_file = Path(name) / "course.json"
        with _processes(job, Path(name), course_file) as processes:
            meter = LoadMeter([os.getpid(), processes.worker_pid, processes.frontend_pid])
            driven = _drive(job, processes)
            load, memory = meter.read(), Memory.of(processes.frontend_pid)
        course = msgspec.json.decode(course_file.read_bytes(), type=Course)
    tally = Tally(course, driven.window)
    for raw in driven.raws:
        tally.take(raw.arrivals(), job.num_tokens)
    return FrontendRun(job, tally.figures(load, memory))


@dataclass(frozen=True, slots=True)
class _Processes:
    port: int
    worker_pid: int
    frontend_pid: int


@contextmanager
def _processes(job: FrontendJob, folder: Path, course_file: Path) -> Iterator[_Processes]:
    """On a machine of one core all share it."""
    *others, last = sorted(os.sched_getaffinity(0))
    cores = set(others) or {last}
    os.sched_setaffinity(0, cores)
    address, port = f"ipc://{folder}/sockets", free_port()
    worker = [f"{__package__}.paced_worker", address, str(job.step_ms), str(course_file)]
    serve = ["chairlift", "serve", *flags({"address": address, "port": port})]
    logs = [folder / "worker.log", folder / "serve.log"]
    try:
        with (
            running(["-m", *worker], logs[0]) as paced,
            running(["-m", *serve], logs[1]) as frontend,
        ):
            os.sched_setaffinity(frontend.pid, {last})  # before it has more than one thread
            wait_until_healthy(port, {paced: logs[0], frontend: logs[1]}, job.timeout_s)
            yield _Processes(port, paced.pid, frontend.pid)
    finally:
        os.sched_setaffinity(0, {*others, last})


@dataclass(frozen=True, slots=True)
class _Driven:
    raws: list[RawExchange]
    window: Window


def _drive(job: FrontendJob, processes: _Processes) -> _Driven:
    async def drive() -> _Driven:
        async with asyncio.timeout(job.timeout_s):
            return await _exchange_all(job, processes)

    try:
        return uvloop.run(drive())
    except TimeoutError:
        raise BenchmarkError(
            f"not done after {job.timeout_s:g} s: raise --timeout, or ask for fewer streams"
        ) from None
    except ExceptionGroup as errors:
        raise BenchmarkError(f"the server went away: {errors.exceptions[0]}") from errors


async def _exchange_all(job: FrontendJob, processes: _Processes) -> _Driven:
    message = job.message()
    raws = [RawExchange() for _ in range(job.num_streams)]
    async with asyncio.TaskGroup() as group:
        for raw in raws:
            group.create_task(exchange(processes.port, raw, message))
        while not all(raw.has_begun for raw in raws):
            await asyncio.sleep(SETTLE_S / 10)
        await asyncio.sleep(SETTLE_S)
        begin_s, begin_cpu_s = time.perf_counter(), cpu_s(processes.frontend_pid)
        await asyncio.sleep(job.seconds)
        cpu = cpu_s(processes.frontend_pid) - begin_cpu_s
        window = Window(begin_s, time.perf_counter(), cpu)
        if any(raw.ended.done() for raw in raws):
            raise BenchmarkError("a stream ended too early: ask for fewer, or for a longer --step")
    return _Driven(raws, window)
