"""Over HTTP: a real worker and a real frontend, and a client that shares their cores."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence

import uvloop

from .errors import BenchmarkError
from .figures import Measured, Run
from .http_client import RawExchange, exchange_all
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
        _drive(running, job, job.warm_up())
        num_steps = _num_steps(running)
        meter = LoadMeter([os.getpid(), running.worker_pid, running.frontend_pid])
        answers = _drive(running, job, requests)
        load = meter.read()
        measured = Measured(
            [answer.read() for answer in answers],
            _num_steps(running) - num_steps,
            load,
            Memory.of(running.worker_pid),
            Memory.of(running.frontend_pid),
        )
    return Run(job.policy, measured.figures(), job.num_threads, None)


def _drive(running: Servers, job: Job, requests: Sequence[Request]) -> list[RawExchange]:
    async def drive() -> list[RawExchange]:
        async with asyncio.timeout(job.timeout_s):
            return await exchange_all(running.port, requests, job.concurrency)

    try:
        return uvloop.run(drive())
    except TimeoutError:
        raise BenchmarkError(
            f"not done after {job.timeout_s:g} s: raise --timeout or lower --limit"
        ) from None
    except ExceptionGroup as errors:
        raise BenchmarkError(f"the server went away: {errors.exceptions[0]}") from errors


def _num_steps(running: Servers) -> int:
    time.sleep(SETTLE_S)
    found = NUM_STEPS.search(fetch(running.port, "/metrics"))
    if found is None:
        raise BenchmarkError("/metrics does not tell the number of steps")
    return int(float(found[1]))
