"""The frontend alone: what a streamed token costs it, and whether it keeps up with the worker.

A real frontend has a core to itself. A worker without a model, which keeps a pace, and the client
share the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import uvloop

from . import options as shared
from .course import Course
from .errors import BenchmarkError
from .figures import medians
from .frontend_figures import LABELS, FrontendFigures, Tally, Window
from .http_client import RawExchange, exchange, post
from .machine import LoadMeter, Memory, cpu_s
from .options import Modes, positive, some_of
from .processes import flags, free_port, running, wait_until_healthy
from .report import repeats, table_of

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

    def message(self, num_tokens: int) -> bytes:
        fields: dict[str, Any] = {"max_tokens": num_tokens, "stream": True}
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


@dataclass(frozen=True, slots=True)
class FrontendCase:
    """Every run of every variant."""

    title: str
    runs: list[FrontendRun]

    def table(self) -> list[list[str]]:
        by_variant: dict[str, list[FrontendFigures]] = {}
        for run in self.runs:
            by_variant.setdefault(run.job.variant, []).append(run.figures)
        columns = {variant: medians(figures) for variant, figures in by_variant.items()}
        return table_of(columns, LABELS)

    @property
    def about(self) -> str:
        num_runs = len(self.runs) // len({run.job.variant for run in self.runs})
        return (
            f"A token a stream every {self.runs[0].job.step_ms:g} ms, the frontend alone on its "
            f"core{repeats(num_runs)}."
        )

    def save(self, folder: Path) -> list[Path]:
        return []


def add_parser(modes: Modes) -> None:
    text = "a real frontend alone on a core, with a worker that keeps a pace instead of a model"
    parser = modes.add_parser("frontend", help=text, parents=[shared.common()])
    variants = get_args(Variant)
    add = parser.add_argument
    add(
        "--variants",
        type=partial(some_of, variants),
        default=variants,
        help=f"{','.join(variants)} or some of them (default: all)",
    )
    add("--streams", type=positive, default=256, help="(default: 256)")
    add("--step-ms", type=float, default=20.0, help="between two tokens (default: 20)")
    add("--seconds", type=float, default=10.0, help="of steady state (default: 10)")
    parser.set_defaults(measure=measure)


def measure(options: argparse.Namespace) -> Iterator[FrontendCase]:
    case = FrontendCase(f"frontend-{options.streams}", [])
    for _ in range(options.repeats):
        for variant in options.variants:
            job = FrontendJob(
                variant, options.streams, options.step_ms, options.seconds, options.timeout
            )
            run = _measure(job)
            case.runs.append(run)
            print(
                f"bench:   {variant}: {run.figures.cpu_us_per_token:.1f} µs of CPU per token, "
                f"others used {run.figures.foreign_cpu_percent:.1f} % of the CPU",
                file=sys.stderr,
            )
            yield case


def _measure(job: FrontendJob) -> FrontendRun:
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
    """Its first answer teaches a frontend the template and more, and counts for nothing."""
    message = job.message(job.num_tokens)
    await exchange(processes.port, RawExchange(), job.message(num_tokens=1))
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
        is_short = any(raw.ended.done() for raw in raws)
    if is_short:
        raise BenchmarkError("a stream ended too early: ask for fewer, or for a longer --step-ms")
    return _Driven(raws, window)
