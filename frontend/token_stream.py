"""One request's answer, as one reader takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from ..shared.errors import StreamNotFoundError
from ..shared.finishes import CANCELLED
from .bell import Bell
from .results import Delta, exception_for

Leave = Callable[["TokenStream", bool], None]  # the second: the request may go on


class TokenStream:
    """One request's answer, as it comes: an async iterator of Deltas, the last one with `finish`.

    A reader that is slower than the model gets fewer, longer Deltas. `async with` cancels what is
    unfinished on leaving. `context` is that of the request as it was first submitted; it is right
    from the first Delta on that is no place in the queue. Of several readers of one request, one is
    its owner.
    """

    def __init__(self, request_id: bytes, leave: Leave, context: bytes, *, may_own: bool) -> None:
        self.request_id = request_id
        self.context = context
        self.prompt_token_ids: list[int] = []  # of a request that ran already; as the context
        self.may_own = may_own  # it does not only watch
        self.is_owner = False
        self._leave = leave
        self._pending: Delta | None = None
        self._news = Bell()
        self._on_news: Callable[[], None] = self._news.ring
        self._opened = asyncio.Event()
        self.is_ended = False  # its last Delta has come
        self._is_exhausted = False  # ... and was taken

    @property
    def num_pending_characters(self) -> int:
        """Of text that the reader has not taken yet."""
        return len(self._pending.text) if self._pending else 0

    def cancel(self) -> None:
        """The owner stops the request, anyone else just leaves; idempotent. The iterator ends
        with an `abort`."""
        self._part(may_go_on=False)

    def detach(self) -> None:
        """Reads no further, but lets a resumable request go on for the worker's grace."""
        self._part(may_go_on=True)

    def _part(self, *, may_go_on: bool) -> None:
        if not self.is_ended:
            self.put(Delta([], "", CANCELLED))
            self._leave(self, may_go_on)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._is_exhausted:
            raise StopAsyncIteration
        while (delta := self.take()) is None:
            await self._news.heard()
        return delta

    def listen(self, on_news: Callable[[], None]) -> None:
        """For a reader of several streams, instead of iterating: tells it when to `take`."""
        self._on_news = on_news
        if self._pending is not None:
            on_news()

    def take(self) -> Delta | None:
        """All that has come since the last time."""
        delta, self._pending = self._pending, None
        self._is_exhausted |= delta is not None and delta.finish is not None
        return delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    @property
    def is_open(self) -> bool:
        """Whether the context is known to be that of the request."""
        return self._opened.is_set()

    async def opened(self) -> None:
        """Until the worker has told whose request it is; raises StreamNotFoundError."""
        await self._opened.wait()
        finish = self._pending.finish if self._pending else None
        error = exception_for(finish) if finish else None
        if isinstance(error, StreamNotFoundError):
            raise error

    def open(self, context: bytes, prompt_token_ids: list[int]) -> None:
        """For the client: the request ran already, under this context."""
        self.context, self.prompt_token_ids = context, prompt_token_ids
        self._opened.set()

    def put(self, delta: Delta) -> None:
        """For the client: news, joined to what the reader has not taken yet."""
        self._pending = delta if self._pending is None else self._pending + delta
        self.is_ended |= delta.finish is not None
        if delta.queue is None and not self._opened.is_set():
            self._opened.set()
        self._on_news()
