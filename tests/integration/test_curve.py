"""`chairlift worker` over tcp with keys: the process and not only its sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chairlift import Client
from chairlift.frontend.connection import Connection
from chairlift.frontend.protocol import News
from chairlift.shared.addresses import Endpoints
from chairlift.shared.curve import FrontendCurve
from chairlift.shared.messages import Greeting
from tests.integration.processes import chairlift, stop
from tests.tcp import Keys, free_address

READY_TIMEOUT_S = 60.0
QUIET_S = 1.0


async def greeted(address: str, curve: FrontendCurve | None, timeout_s: float) -> bool:
    """Whether a worker has introduced itself in time."""
    meeting = asyncio.Event()

    def take(news: News) -> None:
        assert isinstance(news, Greeting)
        meeting.set()

    connection = Connection(Endpoints.parse(address), take, curve)
    try:
        await asyncio.wait_for(meeting.wait(), timeout_s)
    except TimeoutError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.slow
def test_a_worker_with_keys(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It greets the frontend that it knows and nobody else, and ends in order; a Python client is
    told of it by the environment."""
    keys, address = Keys.make(tmp_path), free_address()
    with chairlift(
        "worker",
        model=tiny_model,
        address=address,
        curve_key=keys.worker,
        curve_frontends=keys.frontends,
        dtype="float32",
    ) as worker:
        assert asyncio.run(greeted(address, keys.of(keys.listed), READY_TIMEOUT_S))
        monkeypatch.setenv("CHAIRLIFT_ADDRESS", address)
        monkeypatch.setenv("CHAIRLIFT_CURVE_KEY", str(keys.listed))
        monkeypatch.setenv("CHAIRLIFT_CURVE_WORKER", str(keys.worker_public))
        with Client() as client:
            assert client.complete("a", max_tokens=1).token_ids
        for curve in (None, keys.of(keys.stranger)):
            assert not asyncio.run(greeted(address, curve, QUIET_S))
        assert stop(worker) == 0
