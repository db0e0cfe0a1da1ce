"""Many streams from several frontends while their worker is killed, dies or stands still."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.integration.audit import audit
from tests.integration.failing_worker import SITES
from tests.integration.faults import (
    failing_program,
    kill_workers,
    plan_deaths,
    stop_worker,
    until_dead,
)
from tests.integration.fleet import expected_of, fleet, specs

pytestmark = pytest.mark.slow


def test_streams_survive_killed_workers(tiny_model: Path) -> None:
    """kill -9 at random moments: every stream ends whole, and nothing is left behind."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address))
            await kill_workers(disturbed, 3, random.Random(1))
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            assert verdict.num_whole >= 128
            await disturbed.until_idle()

    asyncio.run(run())


@pytest.mark.parametrize("sites", [[*SITES][:5], [*SITES][5:]], ids=["computing", "telling"])
def test_streams_survive_a_death_at_any_point(
    tiny_model: Path, tmp_path: Path, sites: list[str]
) -> None:
    """A worker that dies while it loads, between a send and its note of it, or anywhere else."""
    expected = expected_of(tiny_model)
    plan = tmp_path / "plan"
    plan_deaths(plan, sites, random.Random(2))

    async def run() -> None:
        async with fleet(tiny_model, program=failing_program(plan)) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address, num_streams=8))
            await until_dead(disturbed, len(sites))
            verdict = audit(await disturbed.finish(), expected)
            assert not plan.read_text()
            assert not verdict.faults
            await disturbed.until_idle()

    asyncio.run(run())


def test_streams_survive_a_stopped_worker(tiny_model: Path) -> None:
    """SIGSTOP for a while: no stream ends, none starts anew, and all go on."""
    expected = expected_of(tiny_model)

    async def run() -> None:
        async with fleet(tiny_model) as disturbed:
            await disturbed.add_readers(*specs(disturbed.address))
            epoch = disturbed.epoch
            await stop_worker(disturbed, 2.0)
            verdict = audit(await disturbed.finish(), expected)
            assert not verdict.faults
            assert disturbed.epoch == epoch
            await disturbed.until_idle()

    asyncio.run(run())
