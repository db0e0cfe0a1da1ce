"""What is left of many tasks that were cancelled: nothing, here and at the worker."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

import chairlift
from chairlift.shared.errors import ChairliftError

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.slow]
GREEDY = {"temperature": 0.0, "ignore_eos": True}
BATCH, NUM_WARM, NUM_TASKS = 250, 2_000, 10_000
MAX_BLOCKS_A_TASK = 0.25  # of memory; whatever a task left behind would be one at least


@dataclass(frozen=True)
class Held:
    """What a process has in its hands."""

    num_tasks: int
    num_files: int
    num_blocks: int  # of the interpreter's memory

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        num_files = len(os.listdir("/proc/self/fd"))
        return cls(len(asyncio.all_tasks()), num_files, sys.getallocatedblocks())


def call(client: chairlift.AsyncClient, number: int) -> Coroutine[Any, Any, object]:
    """One of each kind in turn."""
    match number % 4:
        case 0:
            return client.complete(f"a{number}", max_tokens=200, **GREEDY)
        case 1:
            return client.chat([{"role": "user", "content": f"{number}"}], **GREEDY)
        case 2:
            return client.embed(f"a{number}")
    return read(client, f"b{number}")


async def read(client: chairlift.AsyncClient, prompt: str) -> None:
    async for _ in client.stream(prompt, wants_queue_news=True, **GREEDY):
        pass


async def cancel_batch(client: chairlift.AsyncClient, first: int, dice: random.Random) -> int:
    """Some before they begin, some as they are sent, some while they run; how many were."""
    tasks = [asyncio.create_task(call(client, first + i)) for i in range(BATCH)]
    dice.shuffle(tasks)
    for part in range(5):
        for task in tasks[part::5]:
            task.cancel()
        await asyncio.sleep(dice.choice((0.0, 0.001, 0.01, 0.03)))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [r for r in results if isinstance(r, Exception) and not isinstance(r, ChairliftError)]
    assert not failed
    return sum(isinstance(result, asyncio.CancelledError) for result in results)


async def settle(client: chairlift.AsyncClient) -> None:
    """Until the worker has nothing of ours and every message is out."""
    connection = client._connection
    assert connection is not None
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.05)
            stats, protocol = client.stats, connection.protocol
            is_idle = not stats.num_running + stats.num_waiting
            is_said = not protocol._farewells and not protocol.outgoing
            if is_idle and is_said and stats.num_free_blocks == stats.num_blocks:
                return


def test_ten_thousand_cancelled_tasks_leave_nothing(worker_address: str) -> None:
    """Ten thousand tasks, cancelled at any moment of their calls, leave no request, no task, no
    open file, no memory and no block of the worker's cache."""

    async def run() -> None:
        dice = random.Random(7)
        async with chairlift.AsyncClient(worker_address, connect_timeout_s=60) as client:
            await client.connect()
            num_cancelled, before = 0, Held.now()
            for first in range(0, NUM_TASKS, BATCH):
                if first == NUM_WARM:
                    await settle(client)
                    before = Held.now()
                num_cancelled += await cancel_batch(client, first, dice)
            await settle(client)
            after = Held.now()
            assert num_cancelled > NUM_TASKS * 0.9
            assert client.num_live == 0
            assert client._connection is not None
            assert not client._connection.protocol._requests
            assert (after.num_tasks, after.num_files) == (before.num_tasks, before.num_files)
            growth = (after.num_blocks - before.num_blocks) / (NUM_TASKS - NUM_WARM)
            assert growth < MAX_BLOCKS_A_TASK
            assert (await client.complete("abc", max_tokens=2, **GREEDY)).token_ids

    asyncio.run(run())
