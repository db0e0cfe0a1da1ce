"""Somebody cleans up /tmp under a running worker."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import chairlift
from tests.integration.processes import chairlift as running
from tests.integration.processes import stop, worker_child


def test_a_worker_whose_directory_was_deleted_comes_back(address: str, tiny_model: Path) -> None:
    """Nobody could ever connect again, so the worker starts anew in a new directory, and a stream
    that was under way goes on."""
    params = {"max_tokens": 450, "seed": 3, "ignore_eos": True}

    async def run(worker_pid: int) -> None:
        async with chairlift.AsyncClient(address, connect_timeout_s=30) as client:
            expected = await client.complete("abc", **params)
            received: list[int] = []
            async for delta in client.stream("abc", **params):
                if not received:
                    shutil.rmtree(address.removeprefix("ipc://"))
                received += delta.token_ids
            assert received == expected.token_ids
            assert await asyncio.to_thread(worker_child, worker, other_than=worker_pid)
        async with chairlift.AsyncClient(address, connect_timeout_s=30) as newcomer:
            assert (await newcomer.complete("abc", **params)).token_ids == expected.token_ids

    settings = {"model": tiny_model, "address": address, "dtype": "float32"}
    with running("worker", **settings) as worker:
        asyncio.run(run(worker_child(worker)))
        assert stop(worker) == 0
