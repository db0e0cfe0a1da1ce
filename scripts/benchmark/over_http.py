"""Over HTTP: a real worker and a real frontend, and a client that shares their cores."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import uvloop

from .errors import BenchmarkError
from .figures import Figures, Measured, Run
from .http_client import RawExchange, exchange_all, exchange_at
from .job import Job
from .machine import LoadMeter, Memory
from .processes import Servers, fetch, servers
from .workload import Request

NUM_STEPS = re.compile(r"^chairlift:steps_total (\S+)$", re.MULTILINE)
SETTLE_S = 0.6  # an idle worker sends its figures four times a second


def measure(job: Job) -> Run:
    """Starts the processes, warms up, and times the workload."""
    requests = job.requests()
    with servers(job) as running:
        drive(running.port, job, job.warm_up())
        num_steps = _num_steps(running)
        meter = LoadMeter([os.getpid(), running.worker_pid, running.frontend_pid])
        answers = drive(running.port, job, requests)
        load = meter.read()
        measured = Measured(
            [answer.read() for answer in answers],
            load,
            _num_steps(running) - num_steps,
            Memory.of(running.worker_pid),
            Memory.of(running.frontend_pid),
        )
    return Run(job.policy, measured.figures(), job.num_threads, None)


@dataclass(frozen=True, slots=True)
class Served:
    """Any server that answers /v1/completions as OpenAI's does."""

    port: int
    pids: Sequence[int]  # all of its processes that can be seen
    fields: Mapping[str, str] = field(default_factory=dict)  # of each request, beside our own


def measure_served(served: Served, job: Job) -> Figures:
    """What a client can see of a server that runs: warms up, and times the workload."""
    requests = job.requests()
    drive(served.port, job, job.warm_up(), served.fields)
    meter = LoadMeter([os.getpid(), *served.pids])
    answers = drive(served.port, job, requests, served.fields)
    load = meter.read()
    exchanges = [answer.read() for answer in answers]
    together = Memory.of_all(served.pids) if served.pids else None
    return Measured(exchanges, load, together=together).figures()


def drive(
    port: int,
    job: Job,
    requests: Sequence[Request],
    fields: Mapping[str, str] = MappingProxyType({}),
) -> list[RawExchange]:
    """As many at a time as the job says. Raises BenchmarkError."""
    return _answers(exchange_all(port, requests, job.concurrency, **fields), job.timeout_s)


def drive_at(
    port: int, job: Job, requests: Sequence[Request], starts_s: Sequence[float]
) -> list[RawExchange]:
    """Each at its time, in seconds from now. Raises BenchmarkError."""
    return _answers(exchange_at(port, requests, starts_s), job.timeout_s)


def _answers(
    exchanges: Coroutine[None, None, list[RawExchange]], timeout_s: float
) -> list[RawExchange]:
    async def within_time() -> list[RawExchange]:
        async with asyncio.timeout(timeout_s):
            return await exchanges

    try:
        return uvloop.run(within_time())
    except TimeoutError:
        raise BenchmarkError(
            f"not done after {timeout_s:g} s: raise --timeout or lower --limit"
        ) from None
    except ExceptionGroup as errors:
        raise BenchmarkError(f"the server went away: {errors.exceptions[0]}") from errors


def _num_steps(running: Servers) -> int:
    time.sleep(SETTLE_S)
    found = NUM_STEPS.search(fetch(running.port, "/metrics"))
    if found is None:
        raise BenchmarkError("/metrics does not tell the number of steps")
    return int(float(found[1]))
