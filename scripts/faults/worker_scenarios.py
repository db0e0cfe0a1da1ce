"""The worker is killed, dies by itself, stands still."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

from tests.integration.audit import percentile
from tests.integration.failing_worker import SITES
from tests.integration.faults import (
    Fault,
    failing_program,
    kill_workers,
    plan_deaths,
    stop_worker,
    until_dead,
)
from tests.integration.fleet import Fleet

from .lab import Lab, Load, disturb
from .outcome import Outcome

NUM_KILLS = 15
DEATHS_A_SITE = 2
STOPS_S = (0.2, 2.0, 5.0)
BETWEEN_S = 2.0


async def kill_worker(lab: Lab) -> Outcome:
    """kill -9 at a random moment 0-2 s after the worker is ready again: every stream whole."""
    faults: list[Fault] = []

    async def kill(disturbed: Fleet) -> list[Fault]:
        faults.extend(await kill_workers(disturbed, NUM_KILLS, random.Random(lab.seed)))
        return [Fault(fault.begin_s, fault.begin_s) for fault in faults]

    outcome = await disturb(lab, f"{NUM_KILLS} x kill -9 of the worker", kill)
    restarts_s = [fault.end_s - fault.begin_s for fault in faults]
    outcome.figures["restart_median_s"] = round(percentile(restarts_s, 50), 2)
    outcome.figures["restart_max_s"] = round(max(restarts_s), 2)
    return outcome


async def worker_phases(lab: Lab) -> Outcome:
    """The worker dies at chosen points, between a send and the note of it among them: every
    stream whole."""
    sites = [*SITES] * DEATHS_A_SITE
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        plan_deaths(plan, sites, random.Random(lab.seed))

        async def wait(disturbed: Fleet) -> list[Fault]:
            await until_dead(disturbed, len(sites))
            return []

        load = Load(worker={"program": failing_program(plan)})
        outcome = await disturb(lab, f"{len(sites)} deaths at {len(SITES)} points", wait, load)
        outcome.require(not plan.read_text(), "every planned death came")
    return outcome


async def stop_the_worker(lab: Lab) -> Outcome:
    """SIGSTOP of the worker: all streams go on when it does, none starts anew."""
    epochs: list[int] = []

    async def stop(disturbed: Fleet) -> list[Fault]:
        epochs.append(disturbed.epoch)
        faults = []
        for seconds in STOPS_S:
            faults.append(await stop_worker(disturbed, seconds))
            await asyncio.sleep(BETWEEN_S)
        epochs.append(disturbed.epoch)
        return faults

    seconds = " s, ".join(map(str, STOPS_S))
    outcome = await disturb(lab, f"SIGSTOP of the worker for {seconds} s", stop)
    outcome.require(epochs[0] == epochs[1], "the worker is the same process")
    outcome.itl_p99_ratio = None  # nothing comes meanwhile
    return outcome
