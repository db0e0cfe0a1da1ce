"""Strangers' bytes, floods, too many callers, callers all at once, another version."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import chairlift
from chairlift.shared.errors import OverloadedError
from tests.integration.audit import percentile
from tests.integration.faults import Fault
from tests.integration.fleet import Fleet, Server, fleet, until
from tests.integration.flood import Flood
from tests.integration.hostility import Stranger, hostile_messages, scan
from tests.integration.http_reader import answered, body_of
from tests.integration.workload import Request
from tests.tcp import free_port

from .lab import Lab, Load, disturb, must_be_idle
from .outcome import Outcome

NUM_MESSAGES = 5_000
NUM_TOO_LARGE = 5
NUM_CONNECTIONS = 2_000
FLOOD_S = 10.0
FLOOD_A_SECOND = 10_000
NUM_BURSTS, BURST = 10, 1_000
PEAK_S, OVERLOAD_S, OVERLOAD = 5.0, 10.0, 10
SHORT = Request("abc abc", {"max_tokens": 100, "ignore_eos": True})


async def hostile_bytes(lab: Lab) -> Outcome:
    """Malformed messages and garbage connections: no exit, no stream touched, all counted."""
    port, choose = free_port(2), random.Random(lab.seed)
    malformed: list[int] = []
    epochs: list[int] = []

    async def attack(disturbed: Fleet) -> list[Fault]:
        epochs.append(disturbed.epoch)
        begin_s = time.monotonic()
        stranger = Stranger(disturbed.address)
        for number, message in enumerate(hostile_messages(NUM_MESSAGES, choose)):
            stranger.send(message)
            if number % (NUM_MESSAGES // NUM_TOO_LARGE) == 0:
                stranger.send_too_large()
            await asyncio.sleep(0)
        await scan(port, NUM_CONNECTIONS // 2, choose)
        await scan(port + 1, NUM_CONNECTIONS // 2, choose)
        await asyncio.to_thread(stranger.close)
        await asyncio.sleep(2)
        malformed.append(disturbed.watcher.stats.num_malformed_messages)
        epochs.append(disturbed.epoch)
        return [Fault(begin_s, time.monotonic())]

    done = f"{NUM_MESSAGES:,} hostile messages, {NUM_TOO_LARGE} of 9 MiB, {NUM_CONNECTIONS:,} "
    load = Load(worker={"address": f"tcp://127.0.0.1:{port}"})
    outcome = await disturb(lab, done + "garbage connections", attack, load)
    outcome.figures["num_malformed_counted"] = malformed[0]
    outcome.require(malformed[0] >= NUM_MESSAGES, f"all counted, not {malformed[0]}")
    outcome.require(epochs[0] == epochs[1], "the worker is the same process")
    outcome.pauses = None
    return outcome


async def flood(lab: Lab) -> Outcome:
    """One frontend floods valid requests: it is refused, the others' p99 stays under 2x."""
    nums_waiting: list[int] = []

    async def pour(disturbed: Fleet) -> list[Fault]:
        begin_s = time.monotonic()
        with Flood(disturbed) as poured:
            while time.monotonic() - begin_s < FLOOD_S:
                poured.send(FLOOD_A_SECOND // 100)
                nums_waiting.append(disturbed.watcher.stats.num_waiting)
                await asyncio.sleep(0.01)
            end_s = time.monotonic()
        return [Fault(begin_s, end_s)]

    done = f"{FLOOD_A_SECOND:,} valid requests a second of one frontend for {FLOOD_S:g} s"
    load = Load(worker={"max_num_seqs": 132, "max_waiting": 64})
    outcome = await disturb(lab, done, pour, load)
    outcome.figures["max_waiting_seen"] = max(nums_waiting)
    outcome.require(max(nums_waiting) <= 64, "the queue stays bounded")
    ratio = outcome.itl_p99_ratio
    outcome.require(ratio is not None and ratio < 2, f"the others' p99 under 2x, not {ratio}")
    outcome.pauses = None
    return outcome


async def burst(lab: Lab) -> Outcome:
    """A thousand requests the instant a frontend has met the worker: each ends, none is lost."""
    outcome = Outcome(f"{NUM_BURSTS} x {BURST:,} requests at once from a new frontend")
    async with fleet(lab.model, max_waiting=BURST) as disturbed:
        for _ in range(NUM_BURSTS):
            async with chairlift.AsyncClient(disturbed.address, connect_timeout_s=30) as client:
                await client.connect()
                calls = [
                    client.complete("abc", max_tokens=4, seed=number, ignore_eos=True)
                    for number in range(BURST)
                ]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                for answer in answers:
                    _take(outcome, answer)
        await must_be_idle(outcome, disturbed)
    return outcome


def _take(outcome: Outcome, answer: chairlift.Completion | BaseException) -> None:
    if isinstance(answer, OverloadedError):
        outcome.num_refused += 1
    elif isinstance(answer, BaseException):
        outcome.num_lost += 1
        outcome.failures.append(repr(answer))
    elif len(answer.token_ids) == 4:
        outcome.num_whole += 1
    else:
        outcome.num_wrong += 1
        outcome.failures.append(f"{len(answer.token_ids)} tokens instead of 4")


async def overload(lab: Lab) -> Outcome:
    """Ten times what can be served: who is served is served as well as ever, all others hear at
    once when to come again, and afterwards all is as before."""
    outcome = Outcome(f"{OVERLOAD} x the capacity in HTTP requests for {OVERLOAD_S:g} s")
    async with fleet(lab.model, max_num_seqs=4, max_waiting=8) as disturbed:
        server = await disturbed.add_server()
        peak = await _peak(server)
        calls = await _open_loop(server, OVERLOAD * peak, OVERLOAD_S)
        served = [call for call in calls if call.status == 200]
        refused = [call for call in calls if call.status in (429, 503)]
        goodput = len(served) / OVERLOAD_S
        outcome.num_whole, outcome.num_refused = len(served), len(refused)
        outcome.num_lost = len(calls) - len(served) - len(refused)
        outcome.figures |= {
            "peak_a_second": round(peak, 1),
            "goodput_a_second": round(goodput, 1),
            "goodput_share": round(goodput / peak, 3),
            "refusal_p99_ms": round(1000 * percentile([c.seconds for c in refused], 99), 1),
        }
        outcome.require(not outcome.num_lost, f"only 200, 429, 503: {Counter(map(str, calls))}")
        outcome.require(all(c.retry_after_s >= 1 for c in refused), "each refusal says when")
        outcome.require(goodput >= 0.9 * peak, "goodput is 90 % of the peak")
        begin_s = time.monotonic()
        await must_be_idle(outcome, disturbed, 5.0)
        await _call(server, 0)
        outcome.figures["served_again_s"] = round(time.monotonic() - begin_s, 2)
    return outcome


class Call:
    """One request that was answered somehow."""

    def __init__(self, status: int, seconds: float, retry_after_s: int) -> None:
        self.status = status
        self.seconds = seconds
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.status)


async def _call(server: Server, number: int) -> Call:
    begin_s = time.monotonic()
    body = body_of(SHORT, seed=number, stream=False)
    try:
        async with answered(server.port, "POST", "/v1/completions", body) as answer:
            await answer.reader.read()
            retry_after_s = int(answer.headers.get("retry-after", 0))
            return Call(answer.status, time.monotonic() - begin_s, retry_after_s)
    except OSError:
        return Call(0, time.monotonic() - begin_s, 0)


async def _peak(server: Server) -> float:
    """Requests served in a second when there are always enough."""
    end_s, calls = time.monotonic() + PEAK_S, list[Call]()

    async def caller() -> None:
        while time.monotonic() < end_s:
            calls.append(await _call(server, len(calls)))

    await asyncio.gather(*(caller() for _ in range(8)))
    return sum(call.status == 200 for call in calls) / PEAK_S


async def _open_loop(server: Server, rate: float, seconds: float) -> list[Call]:
    """At this rate, whatever becomes of them."""
    calls = []
    for number in range(int(rate * seconds)):
        calls.append(asyncio.create_task(_call(server, number)))
        await asyncio.sleep(1 / rate)
    return list(await asyncio.gather(*calls))


async def other_version(lab: Lab) -> Outcome:
    """A message of protocol version 99 is refused within a second, with one clear line."""
    outcome = Outcome("one message of version 99")
    async with fleet(lab.model, max_num_seqs=4) as disturbed:
        stranger, begin_s = Stranger(disturbed.address), time.monotonic()
        stranger.send(b"\x92\x63\x90")
        await until(lambda: "speaks protocol version 99" in disturbed.worker_log, 10)
        outcome.figures["refused_after_s"] = round(time.monotonic() - begin_s, 3)
        await asyncio.to_thread(stranger.close)
        outcome.require(disturbed.worker_log.count("protocol version") == 1, "it is one line")
    return outcome
