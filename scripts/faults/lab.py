"""The common set-up: a worker, frontends with many streams each, a quiet phase to compare with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.machine import Memory

from tests.integration.audit import Expected, audit, gaps_s, pauses_s, percentile
from tests.integration.faults import Fault
from tests.integration.fleet import Fleet, fleet, specs
from tests.integration.processes import worker_child
from tests.integration.workload import Record

from .outcome import Outcome, Pauses

QUIET_S = 5.0
AFTERWARDS_S = 1.0


@dataclass(frozen=True, slots=True)
class Lab:
    """The model, what it says when nothing is disturbed, and where a soak's length comes from."""

    model: Path
    expected: Expected
    minutes: float = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """Four frontends with 32 streams each, unless a scenario says otherwise."""

    num_readers: int = 4
    num_streams: int = 32
    reader: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    warm_up_s: float = 2.0
    affected: frozenset[int] = frozenset()  # readers whose latency is not the others'


DEFAULT_LOAD = Load()
Disturb = Callable[[Fleet], Awaitable[Sequence[Fault]]]


async def disturb(lab: Lab, done: str, what: Disturb, load: Load = DEFAULT_LOAD) -> Outcome:
    """The load alone for a while, then disturbed; every stream is held against its text."""
    outcome = Outcome(done)
    async with fleet(lab.model, **load.worker) as disturbed:
        readers = specs(disturbed.address, load.num_readers, load.num_streams, **load.reader)
        await disturbed.add_readers(*readers)
        await asyncio.sleep(load.warm_up_s)
        quiet = Fault(time.monotonic(), time.monotonic() + QUIET_S)
        await asyncio.sleep(QUIET_S)
        outcome.rss_before_mib = memory_of(disturbed)
        faults = await what(disturbed)
        await asyncio.sleep(AFTERWARDS_S)
        outcome.rss_after_mib = memory_of(disturbed)
        records = await disturbed.finish_each()
        outcome.count(audit([r for each in records for r in each], lab.expected))
        _time(outcome, records, quiet, faults, load)
        await must_be_idle(outcome, disturbed)
    return outcome


def _time(
    outcome: Outcome,
    records: list[list[Record]],
    quiet: Fault,
    faults: Sequence[Fault],
    load: Load,
) -> None:
    """Pauses of those that were meant, latencies of those that were not."""
    others = [r for i, each in enumerate(records) if i not in load.affected for r in each]
    meant = [r for i in load.affected for r in records[i]] or others
    outcome.pauses = Pauses.of(
        [pause for fault in faults for pause in pauses_s(meant, fault.begin_s, fault.end_s)]
    )
    before = gaps_s(others, quiet.begin_s, quiet.end_s)
    during = [gap for fault in faults for gap in gaps_s(others, fault.begin_s, fault.end_s)]
    outcome.figures["itl_p99_quiet_ms"] = round(1000 * percentile(before, 99), 2)
    if before and during:
        outcome.figures["itl_p99_disturbed_ms"] = round(1000 * percentile(during, 99), 2)
        outcome.itl_p99_ratio = round(percentile(during, 99) / percentile(before, 99), 2)


def memory_of(disturbed: Fleet) -> dict[str, float]:
    """Resident MiB of the worker and of each of its frontends."""
    pids = {"worker": worker_child(disturbed.worker)}
    pids |= {f"reader{i}": reader.process.pid for i, reader in enumerate(disturbed.readers)}
    return {name: round(Memory.of(pid).now_mib, 1) for name, pid in pids.items()}


async def must_be_idle(outcome: Outcome, disturbed: Fleet, timeout_s: float = 20.0) -> None:
    """No request and no block is left, and the figures say so."""
    try:
        await disturbed.until_idle(timeout_s)
    except AssertionError as error:
        outcome.failures.append(str(error))
