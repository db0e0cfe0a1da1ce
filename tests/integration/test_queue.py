"""A worker with one seat: who waits sees the queue grow shorter, and then begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import chairlift
from chairlift.shared.errors import InvalidRequestError, OverloadedError
from tests.integration.conftest import short_address
from tests.integration.processes import chairlift as run
from tests.integration.processes import serving
from tests.tiny_model import make_tiny_model

MAX_MODEL_LEN = 1 << 14
LONG: dict[str, Any] = {"max_tokens": 16_000, "ignore_eos": True, "temperature": 0}
MAX_WAITING = 4


@pytest.fixture(scope="module")
def one_seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker whose answers take longer than any test."""
    folder = tmp_path_factory.mktemp("long")
    settings: dict[str, Any] = {
        "model": make_tiny_model(folder, max_model_len=MAX_MODEL_LEN),
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 1,
        "max_waiting": MAX_WAITING,
    }
    with (
        short_address() as address,
        run("worker", address=address, **settings),
    ):
        yield address


@pytest.fixture(scope="module")
def url(one_seat: str) -> Iterator[str]:
    with serving(one_seat) as url:
        yield url


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Caller:
    """Reads one long answer, until it hangs up."""

    def __init__(self, http: httpx2.AsyncClient, **changes: Any) -> None:
        self.lines: list[str] = []
        self._http = http
        self._body = {"prompt": "a", "stream": True, **LONG, **changes}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._http.stream("POST", "/v1/completions", json=self._body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                self.lines.append(line)

    async def until(self, is_it: Callable[[str], bool]) -> None:
        """It has read such a line."""
        while not any(map(is_it, self.lines)):
            assert not self._reading.done(), self.lines
            await asyncio.sleep(0.02)

    async def hang_up(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def calling(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with asyncio.timeout(60), httpx2.AsyncClient(base_url=url, timeout=None) as http:
        yield http


def is_at(position: int) -> Callable[[str], bool]:
    return lambda line: line.startswith(f": queue choice=0 position={position} expected_wait_ms=")


def is_text(line: str) -> bool:
    return line.startswith("data: {") and '"finish_reason":null' in line


def test_positions_fall_to_none_and_the_stream_begins(url: str) -> None:
    """Three wait behind one; as those ahead leave, the last sees 2, 1 and 0, and then its answer,
    without a word of the queue among it."""

    async def positions() -> None:
        async with calling(url) as http:
            callers = [Caller(http)]
            await callers[0].until(is_text)
            for number in range(3):
                callers.append(Caller(http, queue_updates=True))
                await callers[-1].until(is_at(number))
            last = callers.pop()
            for position, caller in zip((1, 0), callers, strict=False):
                await caller.hang_up()
                await last.until(is_at(position))
            assert not any(map(is_text, last.lines))
            await callers[-1].hang_up()
            await last.until(is_text)
            await asyncio.sleep(1.5)  # in which there would be news
            await last.hang_up()
            told = [line for line in last.lines if line.startswith((":", "data"))]
            begins = next(number for number, line in enumerate(told) if is_text(line))
            assert [is_text(line) for line in told] == [n >= begins for n in range(len(told))]
            positions = [int(line.split("position=")[1].split()[0]) for line in told[:begins]]
            assert positions == sorted(positions, reverse=True)
            assert set(positions) == {0, 1, 2}

    asyncio.run(positions())


def test_a_full_queue_is_told_with_its_length(url: str) -> None:
    """The refusal has the place that the request would have had."""

    async def refusal() -> None:
        async with calling(url) as http:
            callers = [Caller(http)]
            await callers[0].until(is_text)
            for number in range(MAX_WAITING):
                callers.append(Caller(http, queue_updates=True))
                await callers[-1].until(is_at(number))
            answer = await http.post("/v1/completions", json={"prompt": "a"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "overloaded")
            assert error["queue"]["position"] == MAX_WAITING
            assert error["queue"]["expected_wait_ms"] >= 1000
            assert int(answer.headers["retry-after"]) >= 1
            for caller in callers:
                await caller.hang_up()

    asyncio.run(refusal())


def test_a_python_client_is_told_in_deltas(one_seat: str) -> None:
    """Where it waits, then the answer; with an event loop and without one."""

    async def asynchronous() -> None:
        async with chairlift.AsyncClient(one_seat) as client, asyncio.timeout(60):
            holder = client.stream("a", **LONG)
            await anext(holder)
            deltas = client.stream("b", wants_queue_news=True, max_tokens=3, ignore_eos=True)
            first = await anext(deltas)
            assert first.queue is not None and first.queue.num_ahead == 0
            assert not first.token_ids and first.finish is None
            await holder.aclose()
            rest = [delta async for delta in deltas]
            assert sum(len(delta.token_ids) for delta in rest) == 3
            assert rest[-1].queue is None

    asyncio.run(asynchronous())
    with chairlift.Client(one_seat) as client:
        with chairlift.Client(one_seat) as other:
            held = other.stream("a", **LONG)
            next(held)
            deltas = client.stream("b", wants_queue_news=True, max_tokens=3, ignore_eos=True)
            assert next(deltas).queue == chairlift.QueuePlace(0, 1000)
        assert sum(len(delta.token_ids) for delta in deltas) == 3


def test_a_whole_answer_has_no_room_for_it(one_seat: str) -> None:
    """To `complete` it is no parameter."""
    expected = pytest.raises(InvalidRequestError, match="wants_queue_news")
    with chairlift.Client(one_seat) as client, expected:
        client.complete("a", wants_queue_news=True)


def test_a_clients_own_refusal_tells_the_queue(one_seat: str) -> None:
    """What it knows from the worker's figures."""

    async def refusal() -> None:
        async with chairlift.AsyncClient(one_seat) as client, asyncio.timeout(60):
            holders = [client.stream("a", **LONG) for _ in range(MAX_WAITING + 1)]
            await anext(holders[0])
            firsts = [asyncio.ensure_future(anext(holder)) for holder in holders[1:]]
            while client.stats.num_waiting < MAX_WAITING:
                await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError, match=f"{MAX_WAITING} requests") as caught:
                await client.complete("a")
            assert caught.value.queue is not None
            assert caught.value.queue.num_ahead == MAX_WAITING
            for task in firsts:
                task.cancel()
            await asyncio.gather(*firsts, return_exceptions=True)

    asyncio.run(refusal())
