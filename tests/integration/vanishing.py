"""Callers who ask for much, read one token, and are gone."""

from __future__ import annotations

import asyncio

from tests.integration.http_reader import answered, body_of
from tests.integration.workload import Request

LONG = Request("abc " * 30, {"max_tokens": 380, "ignore_eos": True})


async def vanish(port: int, count: int, *, at_once: int = 32) -> None:
    """So many of them, some at a time; each hangs up after its first token."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await _vanish(port, number)

    async with asyncio.TaskGroup() as callers:
        for _ in range(at_once):
            callers.create_task(caller())


async def _vanish(port: int, number: int) -> None:
    async with answered(port, "POST", "/v1/completions", body_of(LONG, seed=number)) as answer:
        assert answer.status == 200, await answer.reader.read()
        async for line in answer.lines():
            if line.startswith("data: "):
                return
    raise AssertionError("no token came")
