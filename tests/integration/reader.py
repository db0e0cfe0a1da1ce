"""A frontend as a process of its own: `python -m tests.integration.reader SPEC`, SPEC being JSON.

Keeps a number of streams open, one after the other, until stdin ends; then those that run may
finish. Prints `{}` when it has met the worker, then a Record a line for each stream that is over.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator

import msgspec

import chairlift
from chairlift.frontend import connection
from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.errors import OverloadedError, WorkerUnavailableError
from chairlift.shared.sampling_params import checked_sampling_params
from tests.integration.workload import Record, Request, requests

RETRY_S = 0.1


class Spec(msgspec.Struct, frozen=True):
    """`loss` is the share of messages from the worker that never arrive."""

    address: str
    num_streams: int
    first_request: int = 0
    loss: float = 0.0
    high_water_mark: int | None = None
    is_resumable: bool = False
    patience_s: float = 30.0
    rounds: int | None = None  # through the list of requests; None is without end


class Reader:
    """Owns the streams of one client."""

    def __init__(self, client: chairlift.AsyncClient, spec: Spec) -> None:
        self._client = client
        self._spec = spec
        self._requests = requests()
        self._live: dict[int, Record] = {}
        self._is_stopping = asyncio.Event()

    async def run(self) -> None:
        """Until stdin ends and the last stream is over, or patience is."""
        tell({})
        numbers = self._numbers()
        slots = [asyncio.create_task(self._fill(numbers)) for _ in range(self._spec.num_streams)]
        if self._spec.rounds is None:
            await _end_of_stdin()
        else:
            await asyncio.wait(slots)
        self._is_stopping.set()
        _, unfinished = await asyncio.wait(slots, timeout=self._spec.patience_s)
        for record in self._live.values():
            tell(record)
        for slot in unfinished:
            slot.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        for slot in set(slots) - unfinished:
            slot.result()

    def _numbers(self) -> Iterator[int]:
        count = len(self._requests)
        if self._spec.rounds is not None:
            return iter([*range(count)] * self._spec.rounds)
        return (n % count for n in itertools.count(self._spec.first_request))

    async def _fill(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            while not self._is_stopping.is_set():
                record = await self._read(number, self._requests[number])
                if record is not None and not record.is_refused:
                    break
                await asyncio.sleep(RETRY_S)
            if self._is_stopping.is_set():
                return

    async def _read(self, number: int, request: Request) -> Record | None:
        """None when the worker is away or full, so that there is no stream."""
        params = checked_sampling_params(**request.params)
        options = RequestOptions(is_resumable=self._spec.is_resumable)
        prompt = self._client.tokenizer.encode(request.prompt)
        try:
            stream = self._client.generate(prompt, params, options)
        except (WorkerUnavailableError, OverloadedError):
            return None
        record = Record(number, time.monotonic(), request_id=stream.request_id.hex())
        self._live[id(record)] = record
        async with stream:
            async for delta in stream:
                _take(record, delta)
        del self._live[id(record)]
        tell(record)
        return record


def _take(record: Record, delta: chairlift.Delta) -> None:
    record.token_ids += delta.token_ids
    record.text += delta.text
    if delta.token_ids:
        record.arrivals_s.append(round(time.monotonic(), 4))
    if delta.finish is not None:
        record.num_ends += 1
        record.reason, record.code = delta.finish.reason, delta.finish.code


def tell(line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def _end_of_stdin() -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def read() -> None:
        if not sys.stdin.buffer.raw.read(4096) and not ended.done():  # type: ignore[attr-defined]
            ended.set_result(None)

    loop.add_reader(sys.stdin.fileno(), read)
    await ended
    loop.remove_reader(sys.stdin.fileno())


def disturb(spec: Spec) -> None:
    """Makes this process' connection as bad as is wished."""
    if spec.high_water_mark is not None:
        connection.HIGH_WATER_MARK = spec.high_water_mark
    take = connection.Connection._take
    chance = random.Random(spec.first_request)

    def take_most(self: connection.Connection, data: bytes) -> None:
        if chance.random() >= spec.loss:
            take(self, data)

    connection.Connection._take = take_most  # type: ignore[method-assign]


async def main(spec: Spec) -> None:
    disturb(spec)
    async with chairlift.AsyncClient(spec.address, connect_timeout_s=60) as client:
        await client.connect()
        await Reader(client, spec).run()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Spec)))
