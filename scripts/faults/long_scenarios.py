"""What shows only in the long run: leaks under random trouble, and what safety costs."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmark.machine import Memory

from tests.integration.audit import audit
from tests.integration.faults import kill_workers, stop_reader, stop_worker
from tests.integration.fleet import Fleet, Server, fleet, specs
from tests.integration.hostility import Stranger, hostile_messages
from tests.integration.processes import stop
from tests.integration.vanishing import vanish

from .lab import Lab, must_be_idle
from .outcome import Outcome

MEASURED_WORKER = Path(__file__).with_name("measured_worker.py")
COST_S = 10.0
MAX_SLOPE_MIB_PER_HOUR = 1.0
SETTLE_SHARE = 0.2  # of a soak, before memory is expected to be flat

Trouble = Callable[[], Awaitable[object]]


async def cost(lab: Lab) -> Outcome:
    """The loop's own time for messages, 256 streams and no fault: a figure, no verdict."""
    outcome = Outcome(f"256 streams of 4 frontends for {COST_S:g} s")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "figures.json"
        program = [str(MEASURED_WORKER), str(out)]
        async with fleet(
            lab.model, program=program, max_num_seqs=256, drain_timeout_s=0
        ) as measured:
            await measured.add_readers(*specs(measured.address, num_streams=64))
            await asyncio.sleep(COST_S)
            stop(measured.worker)
        figures = json.loads(out.read_text())
    turns = figures["num_turns"]
    for part in ("arrivals", "publishing"):
        outcome.figures[f"{part}_us"] = round(1e6 * figures[f"{part}_s"] / turns, 1)
    total_us = 1e6 * (figures["arrivals_s"] + figures["publishing_s"]) / turns
    outcome.figures |= {"num_turns": turns, "messaging_us": round(total_us, 1)}
    return outcome


@dataclass(frozen=True, slots=True)
class Sample:
    """What the long-lived processes hold."""

    at_s: float
    rss_mib: dict[str, float]
    num_files: int


async def soak(lab: Lab) -> Outcome:
    """One random fault after another: every stream whole, memory and files flat."""
    choose, counts, samples = random.Random(lab.seed), Counter[str](), list[Sample]()
    outcome = Outcome("")
    async with fleet(lab.model) as soaked:
        server = await soaked.add_server()
        await soaked.add_readers(*specs(soaked.address))
        troubles = _troubles(soaked, server, choose)
        end_s = time.monotonic() + 60 * lab.minutes
        while time.monotonic() < end_s:
            name = choose.choice([*troubles])
            await troubles[name]()
            counts[name] += 1
            await asyncio.sleep(choose.uniform(0, 3))
            samples.append(_sample(soaked, server))
        outcome.count(audit(await soaked.finish(), lab.expected))
        await must_be_idle(outcome, soaked)
    outcome.done = ", ".join(f"{count} x {name}" for name, count in counts.items())
    _check_flat(outcome, samples)
    return outcome


def _troubles(soaked: Fleet, server: Server, choose: random.Random) -> dict[str, Trouble]:
    async def stranger() -> None:
        one = Stranger(soaked.address)
        for message in hostile_messages(50, choose):
            one.send(message)
        await asyncio.to_thread(one.close)

    return {
        "kill -9 of the worker": lambda: kill_workers(soaked, 1, choose),
        "SIGSTOP of the worker": lambda: stop_worker(soaked, choose.uniform(0.2, 5)),
        "SIGSTOP of a frontend": lambda: stop_reader(
            soaked, choose.randrange(len(soaked.readers)), choose.uniform(0.5, 12)
        ),
        "100 vanishing callers": lambda: vanish(server.port, 100),
        "50 hostile messages": stranger,
    }


def _sample(soaked: Fleet, server: Server) -> Sample:
    """Workers come and go; their parent, the HTTP frontend and the readers stay."""
    pids = {"parent": soaked.worker.pid, "frontend": server.process.pid}
    pids |= {f"reader{i}": reader.process.pid for i, reader in enumerate(soaked.readers)}
    rss_mib = {name: Memory.of(pid).now_mib for name, pid in pids.items()}
    num_files = sum(len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in pids.values())
    return Sample(time.monotonic(), rss_mib, num_files)


def _check_flat(outcome: Outcome, samples: list[Sample]) -> None:
    settled = samples[int(len(samples) * SETTLE_SHARE) :]
    first, last = settled[0], settled[-1]
    hours = max(last.at_s - first.at_s, 1e-3) / 3600
    outcome.rss_before_mib = {name: round(mib, 1) for name, mib in first.rss_mib.items()}
    outcome.rss_after_mib = {name: round(mib, 1) for name, mib in last.rss_mib.items()}
    growth = {name: last.rss_mib[name] - mib for name, mib in first.rss_mib.items()}
    outcome.figures["max_growth_mib"] = round(max(growth.values()), 2)
    outcome.figures["max_slope_mib_per_hour"] = round(max(growth.values()) / hours, 2)
    outcome.figures["files_growth"] = last.num_files - first.num_files
    if hours >= 1:  # shorter, it is the allocator's noise
        slope = max(growth.values()) / hours
        outcome.require(slope < MAX_SLOPE_MIB_PER_HOUR, f"memory is flat, not {slope:.1f} MiB/h")
    outcome.require(last.num_files - first.num_files <= 8, "the number of open files is flat")
