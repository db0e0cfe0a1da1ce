"""Server-sent events of a stream, for pages of an application's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

import chairlift
from chairlift.frontend.results import Delta
from chairlift.shared.errors import ChairliftError, OverloadedError, WorkerUnavailableError
from chairlift.shared.messages import Finish
from chairlift.shared.queue_place import QueuePlace

DELTAS = [
    Delta([], "", queue=QueuePlace(3, 1200)),
    Delta([1], 'a "line"\nand\r\n\u2028 another'),
    Delta([2], ""),  # half a character
    Delta([3], "ü", Finish("length")),
]
EVENTS = [
    {"queue": {"position": 3, "expected_wait_ms": 1200}},
    {"text": 'a "line"\nand\r\n\u2028 another'},
    {"text": "ü", "finish_reason": "length"},
]


class Source:
    """A stream in both kinds, which ends as it is told, and knows whether it was closed."""

    def __init__(self, deltas: list[Delta], error: Exception | None = None) -> None:
        self._deltas = deltas
        self._error = error
        self.is_closed = False

    def stream(self) -> Generator[Delta, None, None]:
        try:
            yield from self._deltas
            if self._error:
                raise self._error
        finally:
            self.is_closed = True

    async def astream(self) -> AsyncGenerator[Delta, None]:
        try:
            for delta in self._deltas:
                yield delta
            if self._error:
                raise self._error
        finally:
            self.is_closed = True


def parsed(written: bytes) -> list[Any]:
    *events, rest = written.split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def told(source: Source, *, is_async: bool) -> list[Any]:
    """What a reader of all gets."""

    async def collect() -> bytes:
        return b"".join([event async for event in chairlift.sse(source.astream())])

    return parsed(asyncio.run(collect()) if is_async else b"".join(chairlift.sse(source.stream())))


BOTH = pytest.mark.parametrize("is_async", [False, True])


@BOTH
def test_events(is_async: bool) -> None:
    """Text comes as it is, whatever lines it has, the end in the last event, the queue apart, and
    nothing for half a character."""
    source = Source(DELTAS)
    assert told(source, is_async=is_async) == EVENTS
    assert source.is_closed


@BOTH
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("full", retry_after_s=1, code="queue_timeout"), "queue_timeout"),
        (WorkerUnavailableError("gone"), None),
    ],
)
def test_a_failure_is_the_last_event(
    error: ChairliftError, code: str | None, is_async: bool
) -> None:
    """What goes wrong amid an answer is told in it, and the answer ends in order."""
    events = told(Source(DELTAS[:2], error), is_async=is_async)
    failure = {"type": type(error).__name__, "message": str(error), "code": code}
    assert events == [*EVENTS[:2], {"error": failure}]


@BOTH
def test_what_nobody_foresaw_is_raised_and_not_told(is_async: bool) -> None:
    """A bug is an internal error to the reader, and the server's own to log."""
    source = Source(DELTAS[:2], KeyError("secret"))
    if is_async:
        written, error = asyncio.run(_until_raised(source))
    else:
        written, error = b"", None
        with pytest.raises(KeyError):
            for event in chairlift.sse(source.stream()):
                written += event
    assert error is None or isinstance(error, KeyError)
    assert parsed(written)[-1]["error"]["type"] == "InternalError"
    assert b"secret" not in written
    assert source.is_closed


async def _until_raised(source: Source) -> tuple[bytes, BaseException]:
    written = b""
    with pytest.raises(KeyError) as raised:
        async for event in chairlift.sse(source.astream()):
            written += event
    return written, raised.value


def test_closing_closes_the_stream() -> None:
    """A server that closes the iterator, because the caller has gone, closes the stream."""
    source = Source(DELTAS)
    events = chairlift.sse(source.stream())
    next(events)
    assert not source.is_closed
    events.close()
    assert source.is_closed


def test_cancelling_closes_the_stream() -> None:
    """So does the end of a task that reads the asynchronous ones."""
    source = Source(DELTAS)

    async def run() -> None:
        events = chairlift.sse(source.astream())
        await anext(events)
        await events.aclose()

    asyncio.run(run())
    assert source.is_closed
