"""Frontends that stand still, are killed, or whose callers vanish: all others go on."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.integration.audit import audit
from tests.integration.faults import stop_reader
from tests.integration.fleet import expected_of, fleet, specs, until
from tests.integration.http_reader import answered, body_of, read
from tests.integration.processes import stop
from tests.integration.vanishing import LONG, vanish
from tests.integration.workload import requests

pytestmark = pytest.mark.slow

GRACE_S = 1.0
BEYOND_THE_LEASE_S = 11.0


def test_a_stopped_frontend_catches_up(tiny_model: Path) -> None:
    """SIGSTOP for a moment, for long, and for longer than the worker waits: all streams whole."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address))
            await asyncio.gather(
                stop_reader(disturbed, 0, 1.0),
                stop_reader(disturbed, 1, 5.0),
                stop_reader(disturbed, 2, BEYOND_THE_LEASE_S),
            )
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            await disturbed.until_idle()

    asyncio.run(run())


@pytest.mark.parametrize("is_resumable", [True, False])
def test_a_killed_frontends_requests_are_freed(tiny_model: Path, is_resumable: bool) -> None:
    """kill -9: its blocks come back after the grace at the latest, and the others' streams are
    whole."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model, orphan_grace_s=GRACE_S) as disturbed:
            await disturbed.add_readers(
                *specs(disturbed.address, num_readers=2, is_resumable=is_resumable)
            )
            await until(lambda: disturbed.watcher.stats.num_running > 32)
            killed = disturbed.readers.pop(0)
            killed.close()
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            await disturbed.until_idle()

    asyncio.run(run())


def test_callers_of_a_killed_frontend_go_on_at_another(tiny_model: Path) -> None:
    """With Last-Event-ID they get the rest: together the same text as undisturbed."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model, orphan_grace_s=8) as disturbed:
            first, second = await disturbed.add_server(), await disturbed.add_server()
            calls = [
                asyncio.create_task(read(number, request, [first.port, second.port]))
                for number, request in enumerate(requests())
            ]
            await until(lambda: disturbed.watcher.stats.num_generation_tokens > 1000)
            stop(first.process, signal.SIGKILL)
            records = await asyncio.wait_for(asyncio.gather(*calls), 60)
            verdict = audit(records, expected)
            assert not verdict.faults
            assert verdict.num_whole == len(calls)
            await disturbed.until_idle(40)

    asyncio.run(run())


def test_vanishing_callers_leave_nothing(tiny_model: Path) -> None:
    """Hundreds connect, read a token and hang up: every block is free, and the rest is served."""

    async def run() -> None:
        async with fleet(tiny_model) as disturbed:
            server = await disturbed.add_server()
            await vanish(server.port, 500)
            await disturbed.until_idle()
            record = await read(1, requests()[1], [server.port])
            assert record.text == expected_of_one.text

    expected_of_one = expected_of(tiny_model)[1]
    asyncio.run(run())


def test_hanging_up_early_leaves_nothing(tiny_model: Path) -> None:
    """Callers leave while they wait for their turn, while their prompt is computed, and while
    their answer, streamed or not, is; at any moment."""
    choose = random.Random(4)

    async def run() -> None:
        async with fleet(tiny_model, max_num_seqs=4, max_num_batched_tokens=68) as disturbed:
            server = await disturbed.add_server()

            async def caller(number: int) -> None:
                body = body_of(LONG, seed=number, stream=bool(number % 2))
                call = answered(server.port, "POST", "/v1/completions", body)
                try:
                    async with asyncio.timeout(choose.uniform(0, 1.5)), call as answer:
                        await answer.reader.read()
                except TimeoutError:
                    pass

            await asyncio.gather(*(caller(number) for number in range(60)))
            await disturbed.until_idle()

    asyncio.run(run())
