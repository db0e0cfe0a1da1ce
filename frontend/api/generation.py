"""One HTTP request's token streams as one stream of events.

Everything that can happen to the request comes through one queue: text, the end, a failure, the
caller hanging up, a pause long enough for a sign of life.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import structlog
from starlette.types import Receive

from ...shared.errors import ChairliftError, RequestFailedError
from ..client import AsyncClient
from ..results import Delta, error_of
from ..token_stream import TokenStream
from .generation_request import Choice
from .metrics import Metrics, Stopwatch

log = structlog.get_logger(__name__)

QUEUE_LENGTH = 64  # a reader that stalls leaves the rest with the client


@dataclass(frozen=True, slots=True)
class Progress:
    """News of one choice; the last has a finish."""

    index: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Failure:
    """One choice failed, and the request with it."""

    error: Exception


class Pause:
    """Nothing happened for a while."""


class HungUp:
    """The caller is gone."""


Event = Progress | Failure | Pause | HungUp


class Generation:
    """Runs the choices while its block is open; on leaving, whatever still runs is cancelled."""

    def __init__(
        self, client: AsyncClient, choices: list[Choice], metrics: Metrics, pause_s: float
    ) -> None:
        self._client = client
        self._choices = choices
        self._metrics = metrics
        self._pause_s = pause_s
        self._events: asyncio.Queue[Event] = asyncio.Queue(QUEUE_LENGTH)
        self._streams: list[TokenStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._is_quiet = False
        self._timer: asyncio.TimerHandle | None = None
        self.is_abandoned = False

    async def __aenter__(self) -> Self:
        try:
            for choice in self._choices:
                self._start(choice)
        except BaseException:
            await self.__aexit__()
            raise
        self._tick()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        for stream in self._streams:
            stream.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def watch(self, receive: Receive) -> None:
        """Cancels at once when the caller hangs up."""
        self._tasks.append(asyncio.create_task(self._watch(receive)))

    async def next_events(self) -> list[Event]:
        """At least one, and all that are there."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        self._is_quiet = False
        return [HungUp()] if self.is_abandoned else events

    def _start(self, choice: Choice) -> None:
        stopwatch = Stopwatch(self._metrics)
        stream = self._client.generate(choice.prompt_token_ids, choice.params)
        self._streams.append(stream)
        self._tasks.append(asyncio.create_task(self._pump(choice.index, stream, stopwatch)))

    async def _pump(self, index: int, stream: TokenStream, stopwatch: Stopwatch) -> None:
        try:
            async with stream:
                async for delta in stream:
                    stopwatch.saw(delta)
                    error = error_of(delta.finish) if delta.finish else None
                    if error is None:
                        await self._events.put(Progress(index, delta))
                    else:
                        await self._events.put(Progress(index, replace(delta, finish=None)))
                        await self._events.put(Failure(error))
                    if delta.finish:
                        return
            raise RequestFailedError("the stream broke off", code="incomplete")
        except Exception as error:
            if not isinstance(error, ChairliftError):
                log.exception("a stream failed")
            await self._events.put(Failure(error))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_abandoned = True
        for stream in self._streams:
            stream.cancel()
        self._put_if_room(HungUp())  # without room there is something that wakes the reader

    def _tick(self) -> None:
        if self._is_quiet:
            self._put_if_room(Pause())
        self._is_quiet = True
        self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._tick)

    def _put_if_room(self, event: Event) -> None:
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(event)
