"""Frontends stand still, lose frames, are killed; their callers vanish or hang up."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any

from benchmark.machine import Memory

from tests.integration.audit import audit, pauses_s
from tests.integration.faults import Fault, failing_program, stop_reader
from tests.integration.fleet import Fleet, Server, fleet, specs, until
from tests.integration.http_reader import answered, body_of, read
from tests.integration.processes import stop, worker_child
from tests.integration.vanishing import LONG, vanish
from tests.integration.workload import Record, requests

from .lab import Lab, Load, disturb, memory_of, must_be_idle
from .outcome import Outcome, Pauses

STOPS_S = (1.0, 5.0, 10.0, 15.0)  # the worker gives up on a silent frontend after 10
WARM_UP_S = 15.0
MAX_GROWTH_MIB = 20
GRACE_S = 5.0
NUM_FRONTEND_KILLS = 4
NUM_VANISHING = 10_000
# oneDNN keeps 1,024 kernels, one for each shape that it has met: with few shapes it has met them
# all by the end of the warm-up. With all of 512 tokens a step that takes many minutes.
FEW_SHAPES: dict[str, Any] = {"max_num_batched_tokens": 160}
NUM_WARM_UP = 8_000
MAX_GROWTH = 1.05
NUM_HANGING_UP = 2_000
BETWEEN_S = 2.0
NO_DEATHS = Path("/dev/null")


async def stop_frontend(lab: Lab) -> Outcome:
    """SIGSTOP of a frontend: it catches up whole; the others' inter-token p99 stays under 2x."""
    growths_mib: list[float] = []

    async def halt(disturbed: Fleet) -> list[Fault]:
        faults = []
        for seconds in STOPS_S:
            before = memory_of(disturbed)["worker"]
            faults.append(await stop_reader(disturbed, 0, seconds))
            growths_mib.append(memory_of(disturbed)["worker"] - before)
            await asyncio.sleep(BETWEEN_S)
        return faults

    seconds = " s, ".join(f"{s:g}" for s in STOPS_S)
    load = Load(affected=frozenset([0]), warm_up_s=WARM_UP_S, worker=FEW_SHAPES)
    outcome = await disturb(lab, f"SIGSTOP of one frontend of four for {seconds} s", halt, load)
    ratio, growth_mib = outcome.itl_p99_ratio, growths_mib[-1]
    outcome.require(ratio is not None and ratio < 2, f"p99 under 2x, not {ratio}")
    outcome.figures["worker_growth_in_last_stop_mib"] = round(growth_mib, 1)
    outcome.require(growth_mib < MAX_GROWTH_MIB, f"worker + {growth_mib:.1f} MiB is small")
    return outcome


async def lose_frames(lab: Lab) -> Outcome:
    """1 % of frames dropped and queues of 20, with frontends that stand still: all whole."""

    async def halt(disturbed: Fleet) -> list[Fault]:
        stops = (stop_reader(disturbed, index, 1.0 + index) for index in range(3))
        await asyncio.gather(*stops)
        begin_s = time.monotonic()
        await asyncio.sleep(10)
        return [Fault(begin_s, time.monotonic())]

    program = failing_program(NO_DEATHS, high_water_mark=20)
    load = Load(reader={"loss": 0.01, "high_water_mark": 20}, worker={"program": program})
    done = "1 % of frames dropped, queues of 20, three SIGSTOPs of 1-3 s"
    outcome = await disturb(lab, done, halt, load)
    outcome.pauses, outcome.itl_p99_ratio = None, None  # frames are lost all the time
    return outcome


async def kill_frontend(lab: Lab) -> Outcome:
    """kill -9 of `chairlift serve`, whose callers go on at another with Last-Event-ID: the same
    text; what nobody comes back for is freed within the grace."""
    outcome = Outcome(f"{NUM_FRONTEND_KILLS} x kill -9 of a frontend under 128 HTTP streams")
    choose, pauses = random.Random(lab.seed), []
    async with fleet(lab.model, orphan_grace_s=GRACE_S) as disturbed:
        survivor = await disturbed.add_server()
        for _ in range(NUM_FRONTEND_KILLS):
            victim = await disturbed.add_server()
            moment_s = choose.uniform(0.3, 1.5)
            killed_s, records = await _kill_while_read(disturbed, victim, survivor, moment_s)
            outcome.count(audit(records, lab.expected))
            pauses += pauses_s(records, killed_s, killed_s)
        outcome.pauses = Pauses.of(pauses)
        await must_be_idle(outcome, disturbed)
        await disturbed.add_readers(*specs(disturbed.address, 1, is_resumable=True))
        await until(lambda: disturbed.watcher.stats.num_running > 16)
        disturbed.readers[0].close()
        await must_be_idle(outcome, disturbed, GRACE_S + 15.0)
    return outcome


async def _kill_while_read(
    disturbed: Fleet, victim: Server, survivor: Server, moment_s: float
) -> tuple[float, list[Record]]:
    """When it was killed, and what the callers of both got in the end."""
    ports = [[victim.port, survivor.port], [survivor.port]]
    calls = [
        asyncio.create_task(read(number, request, tried))
        for tried in ports
        for number, request in enumerate(requests())
    ]
    await until(lambda: disturbed.watcher.stats.num_running > 32)
    await asyncio.sleep(moment_s)
    killed_s = time.monotonic()
    stop(victim.process, signal.SIGKILL)
    async with asyncio.timeout(90):
        return killed_s, await asyncio.gather(*calls)


async def vanishing(lab: Lab) -> Outcome:
    """Callers connect, read one token and vanish: memory flat, all blocks free."""
    outcome = Outcome(f"{NUM_VANISHING:,} callers read one token and vanish")
    async with fleet(lab.model, max_num_seqs=32, **FEW_SHAPES) as disturbed:
        server = await disturbed.add_server()
        pids = {"worker": worker_child(disturbed.worker), "frontend": server.process.pid}
        await vanish(server.port, NUM_WARM_UP)
        outcome.rss_before_mib = {name: _rss_mib(pid) for name, pid in pids.items()}
        await vanish(server.port, NUM_VANISHING)
        await must_be_idle(outcome, disturbed)
        outcome.rss_after_mib = {name: _rss_mib(pid) for name, pid in pids.items()}
        record = await read(1, requests()[1], [server.port])
        outcome.count(audit([record], lab.expected))
    for name, before in outcome.rss_before_mib.items():
        growth = outcome.rss_after_mib[name] / before
        outcome.require(growth < MAX_GROWTH, f"the {name}'s memory is flat, not {growth:.3f}x")
    return outcome


def _rss_mib(pid: int) -> float:
    return round(Memory.of(pid).now_mib, 1)


async def hang_up(lab: Lab) -> Outcome:
    """Callers hang up while they wait, while their prompt is computed, while their answer is:
    nothing is left, and little is computed for nobody."""
    outcome = Outcome(f"{NUM_HANGING_UP:,} callers hang up at any moment, streamed or not")
    choose = random.Random(lab.seed)
    async with fleet(lab.model, max_num_seqs=16, max_num_batched_tokens=64) as disturbed:
        server = await disturbed.add_server()
        numbers = iter(range(NUM_HANGING_UP))

        async def caller() -> None:
            for number in numbers:
                await _call_for(server, number, choose.uniform(0, 0.5))

        await asyncio.gather(*(caller() for _ in range(48)))
        idle_since_s = time.monotonic()
        await must_be_idle(outcome, disturbed)
        outcome.figures["free_again_s"] = round(time.monotonic() - idle_since_s, 2)
        outcome.count(audit([await read(1, requests()[1], [server.port])], lab.expected))
    return outcome


async def _call_for(server: Server, number: int, seconds: float) -> None:
    body = body_of(LONG, seed=number, stream=bool(number % 2))
    call = answered(server.port, "POST", "/v1/completions", body)
    try:
        async with asyncio.timeout(seconds), call as answer:
            await answer.reader.read()
    except TimeoutError:
        pass
