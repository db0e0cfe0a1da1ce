"""The end: SIGTERM at full load, and a process manager that is killed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.integration.audit import audit
from tests.integration.fleet import (
    expected_of,
    fleet,
    is_healthy,
    short_folder,
    specs,
    until,
)
from tests.integration.honcho import Honcho
from tests.integration.http_reader import read
from tests.integration.workload import requests
from tests.tcp import free_port

pytestmark = pytest.mark.slow

HONCHO_KILLS_AFTER_S = 5
LONG_AFTER_S = 20  # scripts/chaos measures


def test_nothing_is_cut_within_the_drain_limit(tiny_model: Path) -> None:
    """SIGTERM at full load: every stream ends whole, callers are told of the drain, status 0."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model, drain_timeout_s=30) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address, patience_s=60))
            await until(lambda: disturbed.watcher.stats.num_running > 100)
            disturbed.worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(disturbed.worker.wait, 45) == 0
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            assert verdict.num_whole >= 100

    asyncio.run(run())


def test_the_end_comes_by_itself(tiny_model: Path) -> None:
    """SIGTERM at full load with the limits as they are by default: worker and frontend end with
    status 0, though there are readers who don't leave."""

    async def run() -> None:
        async with fleet(tiny_model) as disturbed:
            server = await disturbed.add_server()
            await disturbed.add_readers(*specs(disturbed.address, patience_s=1))
            calls = [
                asyncio.create_task(read(number, request, [server.port]))
                for number, request in enumerate(requests(32))
            ]
            await until(lambda: disturbed.watcher.stats.num_running > 100)
            for process in (disturbed.worker, server.process):
                process.send_signal(signal.SIGTERM)
            for process in (disturbed.worker, server.process):
                assert await asyncio.to_thread(process.wait, LONG_AFTER_S) == 0
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.checkout
def test_nothing_outlives_honcho(tiny_model: Path) -> None:
    """SIGTERM for the process manager ends worker, parent and frontend before it has to kill."""

    async def run() -> None:
        with short_folder() as folder, Honcho(folder, tiny_model, free_port()) as honcho:
            async with asyncio.timeout(60):
                while not await is_healthy(honcho.port):
                    await asyncio.sleep(0.05)
            assert len(honcho.descendants) >= 5  # two of honcho's own, two commands, the model
            honcho.process.terminate()
            await until(lambda: not honcho.alive, 2 * HONCHO_KILLS_AFTER_S)
            assert "SIGKILL" not in honcho.log

    asyncio.run(run())
