"""`chairlift worker` and what it survives: real processes, a tiny model, streams that go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import chairlift
from chairlift.worker.process import TUNING
from tests.integration.processes import chairlift as running
from tests.integration.processes import stop, worker_child

POISONED = Path(__file__).with_name("poisoned_worker.py")
POISON = 500
HARMLESS: dict[str, Any] = {
    "max_tokens": 300,
    "ignore_eos": True,
    "logit_bias": {POISON: -100.0},
}
NUM_STREAMS = 4


def client_of(address: str) -> chairlift.AsyncClient:
    return chairlift.AsyncClient(address, connect_timeout_s=60)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def epoch_of(client: chairlift.AsyncClient) -> int:
    assert client.worker is not None
    return client.worker.epoch


def is_alive(pid: int) -> bool:
    """A zombie is not: whose parent was killed waits for init, which may take its time."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def stream_of(client: chairlift.AsyncClient, number: int) -> chairlift.Completion:
    return await client.complete(f"abc{number}", seed=number, **HARMLESS)


async def streams_of(client: chairlift.AsyncClient) -> list[str]:
    answers = await asyncio.gather(*(stream_of(client, i) for i in range(NUM_STREAMS)))
    return [answer.text for answer in answers]


def test_streams_survive_killed_workers(address: str, tiny_model: Path, tmp_path: Path) -> None:
    """kill -9, twice: the same parent starts another worker, and every stream ends whole."""
    log = tmp_path / "log"

    async def run(parent: subprocess.Popen[bytes]) -> None:
        async with client_of(address) as client:
            expected = await streams_of(client)
            together = asyncio.ensure_future(streams_of(client))
            child = epoch = 0
            for _ in range(2):
                child = worker_child(parent, other_than=child)
                await until(lambda known=epoch: epoch_of(client) != known)
                await until(lambda: client.stats.num_running > 0)
                epoch = epoch_of(client)
                os.kill(child, signal.SIGKILL)
                await until(lambda killed=child: not is_alive(killed))
            assert await together == expected
            assert parent.poll() is None

    with running("worker", log=log, model=tiny_model, address=address, dtype="float32") as parent:
        asyncio.run(run(parent))
        assert stop(parent) == 0
    assert log.read_text().count("the worker died") == 2


def test_a_worker_ends_with_its_parent(address: str, tiny_model: Path) -> None:
    """kill -9 of the parent leaves no process behind."""

    async def run(parent: subprocess.Popen[bytes]) -> None:
        async with client_of(address) as client:
            await client.connect()
            child = worker_child(parent)
            stop(parent, signal.SIGKILL)
            await until(lambda: not is_alive(child), timeout_s=5)

    with running("worker", model=tiny_model, address=address) as parent:
        asyncio.run(run(parent))


@pytest.mark.parametrize("way", ["abort", "wedge"])
def test_poison_fails_alone(address: str, tiny_model: Path, tmp_path: Path, way: str) -> None:
    """Two workers die of a request, or hang in it; then it fails, and all others end whole."""
    log = tmp_path / "log"
    program = [str(POISONED), way, str(POISON)]

    async def run() -> None:
        async with client_of(address) as client:
            expected = await streams_of(client)
            together = asyncio.ensure_future(streams_of(client))
            await until(lambda: client.stats.num_running == NUM_STREAMS)
            with pytest.raises(chairlift.ChairliftError) as caught:
                await client.complete([1, 2, POISON], max_tokens=5)
            assert getattr(caught.value, "code", None) == "worker_crashed_on_request"
            assert await together == expected

    with running(
        "worker",
        log=log,
        program=program,
        model=tiny_model,
        address=address,
        dtype="float32",
        hang_timeout_s=3,
    ) as parent:
        asyncio.run(run())
        assert stop(parent) == 0
    text = log.read_text()
    assert text.count("the worker died") == 2
    assert (" in wedge" in text) == (way == "wedge")  # the stacks


def test_a_signal_to_the_group_drains(address: str, tiny_model: Path) -> None:
    """As process managers send it, and twice: what runs ends whole, and the exit is 0."""

    async def run(parent: subprocess.Popen[bytes]) -> None:
        async with client_of(address) as client:
            await client.connect()
            one = asyncio.ensure_future(stream_of(client, 0))
            await until(lambda: client.stats.num_running > 0)
            for _ in range(2):
                os.killpg(parent.pid, signal.SIGTERM)
            assert len((await one).token_ids) == HARMLESS["max_tokens"]

    with running("worker", model=tiny_model, address=address, drain_timeout_s=8) as parent:
        asyncio.run(run(parent))
        assert parent.wait(10) == 0


def test_a_second_signal_stops_now(address: str, tiny_model: Path) -> None:
    """What still runs gets its final error and the exit is 0, though a minute was left."""

    async def run(parent: subprocess.Popen[bytes]) -> None:
        async with client_of(address) as client:
            await client.connect()
            many = [
                asyncio.ensure_future(client.complete("abc", max_tokens=500, ignore_eos=True))
                for _ in range(32)
            ]
            await until(lambda: client.stats.num_running > 0)
            parent.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            parent.send_signal(signal.SIGTERM)
            started = time.monotonic()
            answers = await asyncio.gather(*many, return_exceptions=True)
            assert any(getattr(answer, "code", None) == "shutting_down" for answer in answers)
            assert await asyncio.to_thread(parent.wait, 10) == 0
            assert time.monotonic() - started < 10

    with running("worker", model=tiny_model, address=address, drain_timeout_s=60) as parent:
        asyncio.run(run(parent))


def test_a_worker_begins_again_with_what_its_process_needs(
    address: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process, with the same arguments; what the user has set stays."""
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")

    async def run() -> None:
        async with client_of(address) as client:
            assert (await stream_of(client, 1)).text

    with running("worker", address=address, model=tiny_model) as parent:
        asyncio.run(run())
        child = worker_child(parent)
        found = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        assert f"GLIBC_TUNABLES={TUNING['GLIBC_TUNABLES']}".encode() in found
        assert b"GOMP_SPINCOUNT=0" in found
