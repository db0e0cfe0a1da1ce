"""A client of streams that takes next to nothing of the cores it shares.

It notes when bytes came and looks at them afterwards.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .errors import BenchmarkError
from .figures import Exchange
from .workload import Request

# JSON has no line breaks, so this is never inside of one; an event lies within one HTTP chunk.
EVENT = re.compile(rb"(?<=\n)data: (.*)\n\n")
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event, and when its last byte was there."""

    arrived_s: float
    num_bytes: int  # of its data
    event: dict[str, Any]


class RawExchange(asyncio.Protocol):
    """Keeps the answer to one request as it comes, until the server hangs up."""

    def __init__(self, request: Request | None = None) -> None:
        self.submitted_s = time.perf_counter()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._pieces: list[bytes] = []
        self._times_s: list[float] = []

    def data_received(self, data: bytes) -> None:
        self._times_s.append(time.perf_counter())
        self._pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def read(self) -> Exchange:
        """What the bytes mean; raises BenchmarkError for anything but a whole stream."""
        assert self._request is not None, "needed to tell what was asked for"
        exchange = Exchange(self._request, self.submitted_s)
        for arrival in self.arrivals():
            _take(exchange, arrival.event, arrival.arrived_s)
        if not exchange.arrivals_s:
            raise BenchmarkError("a stream brought no text")
        return exchange

    @property
    def has_begun(self) -> bool:
        return bool(self._pieces)

    def arrivals(self) -> Iterator[Arrival]:
        """The events; raises BenchmarkError for anything but a whole stream."""
        answer = b"".join(self._pieces)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise BenchmarkError(f"a request was refused: {answer[:500].decode(errors='replace')}")
        ends = list(accumulate(map(len, self._pieces)))
        events = list(EVENT.finditer(answer))
        if not events or events[-1][1] != DONE:
            raise BenchmarkError("a stream broke off before its end")
        for match in events[:-1]:
            event = json.loads(match[1])
            if "error" in event:
                raise BenchmarkError(f"a request failed: {event['error']}")
            arrived_s = self._times_s[bisect_left(ends, match.end())]
            yield Arrival(arrived_s, len(match[1]), event)


def _take(exchange: Exchange, event: dict[str, Any], arrived_s: float) -> None:
    """Text whose token ids aren't told counts as one token: `tokens_per_arrival` shows what that
    hides."""
    for choice in event["choices"]:
        token_ids = choice.get("token_ids") or []
        if choice["text"] or token_ids:
            exchange.arrive(arrived_s, len(token_ids) or 1)
    if event.get("usage"):
        exchange.num_output_tokens = event["usage"]["completion_tokens"]


async def exchange_all(
    port: int, requests: Sequence[Request], concurrency: int, **fields: str
) -> list[RawExchange]:
    """All requests, `concurrency` at a time; what is answered is replaced at once."""
    waiting = [(request, _message(request, **fields)) for request in reversed(requests)]
    answers: list[RawExchange] = []

    async def client() -> None:
        while waiting:
            request, message = waiting.pop()
            answers.append(RawExchange(request))
            await exchange(port, answers[-1], message)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client())
    return answers


async def exchange_at(
    port: int, requests: Sequence[Request], starts_s: Sequence[float]
) -> list[RawExchange]:
    """Each request at its time, in seconds from now, whatever has become of the others."""
    messages = [_message(request) for request in requests]
    clock = asyncio.get_running_loop().time
    began = clock()

    async def client(request: Request, message: bytes, start_s: float) -> RawExchange:
        await asyncio.sleep(began + start_s - clock())
        raw = RawExchange(request)
        await exchange(port, raw, message)
        return raw

    async with asyncio.TaskGroup() as group:
        clients = map(client, requests, messages, starts_s)
        tasks = [group.create_task(one) for one in clients]
    return [task.result() for task in tasks]


async def exchange(port: int, raw: RawExchange, message: bytes) -> None:
    """Sends the request and takes the answer, until the server hangs up."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: raw, "127.0.0.1", port)
    try:
        transport.write(message)
        await raw.ended
    finally:
        transport.close()


async def answer_to(port: int, request: Request, **fields: str) -> Exchange:
    """To one request, with these fields beside what every one has."""
    raw = RawExchange(request)
    await exchange(port, raw, _message(request, **fields))
    return raw.read()


def _message(request: Request, **fields: str) -> bytes:
    return post(
        "/v1/completions",
        {
            **fields,
            "prompt": request.prompt_token_ids,
            "max_tokens": request.num_output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        },
    )


def post(path: str, fields: dict[str, Any]) -> bytes:
    """A whole HTTP request."""
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
