"""What is done to a fleet under load: the same for the tests and for scripts/chaos."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.failing_worker import SITES
from tests.integration.fleet import Fleet, until
from tests.integration.processes import worker_child

MAX_UPTIME_S = 2.0  # from a worker's being ready to its next death
FAILING_WORKER = Path(__file__).with_name("failing_worker.py")


@dataclass(frozen=True, slots=True)
class Fault:
    """When something was wrong, on the machine's monotonic clock."""

    begin_s: float
    end_s: float


async def kill_workers(fleet: Fleet, times: int, choose: random.Random) -> list[Fault]:
    """kill -9 at a random moment after each worker is ready."""
    faults = []
    for _ in range(times):
        await asyncio.sleep(choose.uniform(0, MAX_UPTIME_S))
        epoch, begin_s = fleet.epoch, time.monotonic()
        fleet.kill_worker()
        await fleet.until_restarted(epoch)
        faults.append(Fault(begin_s, time.monotonic()))
    return faults


async def stop_worker(fleet: Fleet, seconds: float) -> Fault:
    """SIGSTOP, and SIGCONT later."""
    return await _stop(worker_child(fleet.worker), seconds)


async def stop_reader(fleet: Fleet, index: int, seconds: float) -> Fault:
    return await _stop(fleet.readers[index].process.pid, seconds)


async def _stop(pid: int, seconds: float) -> Fault:
    begin_s = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    return Fault(begin_s, time.monotonic())


def failing_program(plan: Path, *, high_water_mark: int = 1000) -> list[str]:
    """For `fleet(program=...)`: a worker that dies as the file says."""
    return [str(FAILING_WORKER), str(plan), str(high_water_mark)]


def plan_deaths(plan: Path, sites: Sequence[str], choose: random.Random) -> None:
    """One death after another, each at some call of its site."""
    plan.write_text("\n".join(f"{site} {choose.randint(1, SITES[site].most)}" for site in sites))


async def until_dead(fleet: Fleet, num_deaths: int) -> None:
    """That many workers have died."""
    timeout_s = 20.0 * num_deaths
    await until(lambda: fleet.worker_log.count("the worker died") >= num_deaths, timeout_s)
