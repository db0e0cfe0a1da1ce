"""One HTTP request's token streams as one stream of events.

Everything that can happen to the request wakes one reader: text, the end, a failure, the caller
hanging up, a pause long enough for a sign of life. What it has not taken waits in the streams.
While it waits itself, and whoever reads the answer keeps up, text goes past it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ...shared.errors import (
    ChairliftError,
    InvalidRequestError,
    RequestFailedError,
    RequestIdConflictError,
)
from ...shared.logs import HostLog
from ..bell import Bell
from ..results import Delta, exception_for
from ..token_stream import TokenStream
from .answer_form import AnswerForm
from .context import Context
from .idempotency import key_reused
from .metrics import Stopwatch
from .opening import OpenedAnswer
from .sending import ImpatientSend
from .spans import Span

log = HostLog(__name__)

CHECK_S = 1.0  # between looks at what waits for the reader
CHARACTER_BYTES = 4  # at most
INVALID_GRAMMAR = "invalid_grammar"


class Progress(Struct, frozen=True):
    """News of one choice; the last has a finish. There is one for each token."""

    index: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Failed:
    """One choice failed, and the request with it."""

    error: Exception


class Pause:
    """Nothing happened for a while."""


class HungUp:
    """The caller is gone."""


Event = Progress | Failed | Pause | HungUp


class Passage(Protocol):
    """Where a token goes at once, without waking the task that waits for news: that takes as long
    as all the rest."""

    is_free: Callable[[], bool]  # whether `pass_on` may be called just now

    def pass_on(self, index: int, delta: Delta) -> None: ...


class Generation:
    """Reads an answer's streams while its block is open.

    On leaving, what still runs is cancelled, unless somebody may come back for it.
    """

    def __init__(self, opened: OpenedAnswer, context: Context, span: Span | None = None) -> None:
        """The span is told what it sees, and handed on at the end."""
        metrics, settings = context.metrics, context.settings
        self.opened = opened
        self.form = opened.form  # a joined request's own, from the first event on
        self.is_abandoned = False
        self._loop = asyncio.get_running_loop()
        self._context = opened.form.encode()
        self._span, self._spans = span, context.spans
        self._pause_s = settings.keep_alive_s
        self._max_buffer_bytes = settings.max_buffer_bytes
        self._stopwatches = {
            index: Stopwatch(metrics, is_timed=opened.is_new) for index in opened.streams
        }  # of the streams without an end
        self._news = Bell()
        self._passage: Passage | None = None
        self._failure: Exception | None = None  # of the passage
        self._is_paused = False
        self._tasks: list[asyncio.Task[None]] = []
        self._send: ImpatientSend | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_event_at = 0.0
        self._has_news = False
        self._is_anothers = False  # none of it is ours to stop

    async def __aenter__(self) -> Self:
        for index, stream in self.opened.streams.items():
            stream.listen(partial(self._on_news, index))
        self._last_event_at = self._loop.time()
        self._tick()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()
        self.is_abandoned |= isinstance(error, ClientDisconnect)
        self._leave(is_shutdown=isinstance(error, asyncio.CancelledError))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._span is not None:
            self._spans.end(self._span, is_abandoned=self.is_abandoned)

    def watch(self, receive: Receive, send: ImpatientSend) -> None:
        """Leaves at once when the caller hangs up; `send` gives up on one who takes nothing, or
        for whom too much waits."""
        self._send = send
        self._tasks.append(asyncio.create_task(self._watch(receive)))

    async def outlast(self, seconds: float) -> None:
        """Reads on for a caller who hung up and may come back: until the answer is whole or another
        has taken it over, or for so long; then it is cancelled. It keeps the caller's place, and
        would be submitted again if the worker died."""
        if not (self.is_abandoned and self._outlasts_caller):
            return
        try:
            async with asyncio.timeout(seconds):
                while self._stopwatches:
                    await self.next_events()
        except TimeoutError:
            for stream in self.opened.streams.values():
                stream.cancel()

    @property
    def _outlasts_caller(self) -> bool:
        is_ours = not (self._is_anothers or self.opened.is_watched)
        return is_ours and self.form.survives_hangup

    async def first_events(self) -> list[Event]:
        """As `next_events`, before anything is written; raises the failure among them. A joined
        request's own form is known then, unless the worker has not answered yet."""
        events = await self.next_events()
        for event in events:
            if isinstance(event, Failed):
                raise event.error
        for stream in self.opened.streams.values():
            self._recognise(stream)
        return events

    async def next_events(self, passage: Passage | None = None) -> list[Event]:
        """At least one, and all that are there. Meanwhile tokens take the passage while it is
        free; raises what that raised."""
        events: list[Event] = []
        while not events:
            self._passage = passage
            try:
                await self._news.heard()
            finally:
                self._passage = None
            if self._failure:
                raise self._failure
            for index in [*self._stopwatches]:
                events += self._take(index)
            if self.is_abandoned:
                events = [HungUp()]
            elif self._is_paused and not events:
                events.append(Pause())
        self._is_paused = False
        self._last_event_at = self._loop.time()
        return events

    def _on_news(self, index: int) -> None:
        passage, stream = self._passage, self.opened.streams[index]
        if passage is None or stream.is_ended or not passage.is_free():
            self._news.ring()
        elif (delta := stream.take()) is not None:
            try:
                self._saw(index, delta)
                self._last_event_at = self._loop.time()
                passage.pass_on(index, delta)
            except Exception as failure:
                self._failure = failure
                self._news.ring()

    def _take(self, index: int) -> list[Event]:
        """News of one stream."""
        stream = self.opened.streams[index]
        delta = stream.take()
        if delta is None:
            return []
        try:
            self._saw(index, delta)
            if delta.finish is None:
                return [Progress(index, delta)]
            del self._stopwatches[index]
            error = exception_for(delta.finish)
            if error is None:
                return [Progress(index, delta)]
            return [Progress(index, replace(delta, finish=None)), Failed(self._judged(error))]
        except Exception as error:
            self._stopwatches.pop(index, None)
            if not isinstance(error, ChairliftError):
                log.exception("a stream failed")
            return [Failed(error)]

    def _saw(self, index: int, delta: Delta) -> None:
        """A place in the queue says nothing of whose request it is."""
        if delta.queue is None:
            self._recognise(self.opened.streams[index])
            self._stopwatches[index].saw(delta)
            if self._span is not None:
                self._span.saw(index, delta)

    def _recognise(self, stream: TokenStream) -> None:
        """Whose request it is, which is known by its first news; HttpError if another's."""
        if stream.context != self._context:
            form = AnswerForm.decode(stream.context)
            if form.body_digest != self.form.body_digest:
                self._is_anothers = True
                raise key_reused()
            if not self._has_news:
                self.form = form
        self._has_news = True

    def _judged(self, error: ChairliftError) -> ChairliftError:
        """After a takeover, or when it never was ours, the streams are not ours to stop."""
        if isinstance(error, RequestIdConflictError):
            self._is_anothers = True
            return key_reused()
        if isinstance(error, RequestFailedError) and error.code == "taken_over":
            self._is_anothers = True
        if isinstance(error, RequestFailedError) and error.code == INVALID_GRAMMAR:
            param = self.form.grammar_param
            return InvalidRequestError(f"{param}: {error}", param=param, code=INVALID_GRAMMAR)
        return error

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_abandoned = True
        if not self._outlasts_caller:
            self._leave()
        self._news.ring()

    def _leave(self, *, is_shutdown: bool = False) -> None:
        may_go_on = self._may_go_on(is_shutdown)
        for stream in self.opened.streams.values():
            (stream.detach if may_go_on else stream.cancel)()

    def _may_go_on(self, is_shutdown: bool) -> bool:
        """A caller that hangs up may come back only for what was asked to be kept; one that we
        send away, for every stream."""
        if self._is_anothers or self.opened.is_watched:
            return True
        if self.is_abandoned:
            return self.form.survives_hangup
        if is_shutdown:
            return self.opened.is_resumable
        return not self.opened.is_new  # refused or failed: what ran before we came is not over

    def _tick(self) -> None:
        now = self._loop.time()
        if now - self._last_event_at >= self._pause_s:
            self._is_paused = True
            self._news.ring()
        pending = sum(stream.num_pending_characters for stream in self.opened.streams.values())
        if self._send is not None:
            self._send.check(now, is_enough=pending * CHARACTER_BYTES > self._max_buffer_bytes)
        delay_s = min(self._pause_s, CHECK_S)
        self._timer = self._loop.call_later(delay_s, self._tick)
