"""Lost frames, full queues, strangers' bytes and floods: streams stay whole, the worker up."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

import chairlift
from chairlift.shared.errors import OverloadedError
from tests.integration.audit import audit
from tests.integration.faults import failing_program, stop_reader
from tests.integration.fleet import expected_of, fleet, specs, until
from tests.integration.flood import Flood
from tests.integration.hostility import Stranger, hostile_messages, scan
from tests.integration.http_reader import answered, body_of
from tests.integration.vanishing import LONG
from tests.tcp import free_port

pytestmark = pytest.mark.slow

NO_DEATHS = Path("/dev/null")
FEW = 20  # messages in a queue


def test_lost_frames_and_full_queues(tiny_model: Path) -> None:
    """Frames dropped at random, queues of a few messages, frontends that stand still meanwhile."""
    expected = expected_of(tiny_model)
    program = failing_program(NO_DEATHS, high_water_mark=FEW)

    async def run() -> None:
        async with fleet(tiny_model, program=program) as disturbed:
            lossy = specs(disturbed.address, num_streams=16, loss=0.05, high_water_mark=FEW)
            await disturbed.add_readers(*lossy)
            stops = (stop_reader(disturbed, index, 1.0 + index) for index in range(3))
            await asyncio.gather(*stops)
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            await disturbed.until_idle()

    asyncio.run(run())


def test_hostile_bytes(tiny_model: Path) -> None:
    """Malformed, truncated, nested, oversized messages and connections that speak otherwise are
    counted; the worker stays the same process and the streams stay whole."""
    expected, choose = expected_of(tiny_model), random.Random(5)

    async def run() -> None:
        port = free_port(2)
        async with fleet(tiny_model, address=f"tcp://127.0.0.1:{port}") as disturbed:
            server = await disturbed.add_server()
            await disturbed.add_readers(*specs(disturbed.address, num_streams=8))
            epoch = disturbed.epoch
            stranger = Stranger(disturbed.address)
            for message in hostile_messages(500, choose):
                stranger.send(message)
            stranger.send_too_large()
            await scan(port, 100, choose)
            await scan(port + 1, 100, choose)
            await until(lambda: disturbed.watcher.stats.num_malformed_messages >= 500)
            await asyncio.to_thread(stranger.close)
            assert await malformed_in_metrics(server.port) >= 500
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            assert disturbed.epoch == epoch
            assert disturbed.worker_log.count("speaks protocol version") <= 1  # a line a second
            await disturbed.until_idle()

    asyncio.run(run())


async def malformed_in_metrics(port: int) -> float:
    await asyncio.sleep(0.5)  # as old as the last heartbeat
    async with answered(port, "GET", "/metrics") as answer:
        async for line in answer.lines():
            if line.startswith("chairlift:malformed_messages_total "):
                return float(line.split()[1])
    raise AssertionError("/metrics does not say it")


def test_another_version_is_refused_in_words(tiny_model: Path) -> None:
    """One line tells which versions met, and what to do."""

    async def run() -> None:
        async with fleet(tiny_model, max_num_seqs=4) as disturbed:
            stranger = Stranger(disturbed.address)
            stranger.send(b"\x92\x63\x90")
            await until(lambda: "speaks protocol version 99" in disturbed.worker_log, 10)
            await asyncio.to_thread(stranger.close)
            assert "install the same chairlift on both" in disturbed.worker_log

    asyncio.run(run())


def test_a_flood_is_refused(tiny_model: Path) -> None:
    """Tens of thousands of valid requests of one frontend: the queue stays bounded, the streams of
    others are whole, and the flood is gone when its frontend is."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model, max_num_seqs=160, max_waiting=64) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address, num_streams=16))
            with Flood(disturbed) as flood:
                for _ in range(20):
                    flood.send(1000)
                    await asyncio.sleep(0.02)
                await until(lambda: disturbed.watcher.stats.num_waiting > 0)
                verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            assert disturbed.watcher.stats.num_waiting <= 64
            await disturbed.until_idle(40)

    asyncio.run(run())


def test_a_burst_at_once_is_all_answered(tiny_model: Path) -> None:
    """A thousand requests in the instant that a frontend has met the worker: none is lost."""

    async def run() -> None:
        async with (
            fleet(tiny_model) as disturbed,
            chairlift.AsyncClient(disturbed.address, connect_timeout_s=30) as client,
        ):
            await client.connect()
            calls = (
                client.complete("abc", max_tokens=4, seed=number, ignore_eos=True)
                for number in range(1000)
            )
            answers = await asyncio.gather(*calls, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
            whole = [answer for answer in answers if isinstance(answer, chairlift.Completion)]
            assert len(refused) + len(whole) == 1000
            assert len(whole) >= 900
            assert all(len(answer.token_ids) == 4 for answer in whole)
            assert client.num_live == 0

    asyncio.run(run())


def test_overload_is_told_at_once(tiny_model: Path) -> None:
    """Beyond the queue's limit callers hear 429 or 503 and when to come again; the others are
    served: no fewer than may wait, even if all come between two steps."""

    async def run() -> None:
        async with fleet(tiny_model, max_num_seqs=4, max_waiting=8) as disturbed:
            server = await disturbed.add_server()

            async def call(number: int) -> int:
                body = body_of(LONG, seed=number, stream=False, max_tokens=40)
                async with answered(server.port, "POST", "/v1/completions", body) as answer:
                    await answer.reader.read()
                    if answer.status != 200:
                        assert int(answer.headers["retry-after"]) >= 1
                    return answer.status

            statuses = await asyncio.gather(*(call(number) for number in range(64)))
            assert set(statuses) <= {200, 429, 503}
            assert 8 <= statuses.count(200) < 64
            await disturbed.until_idle()

    asyncio.run(run())
