"""One request's answer, as its reader takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from .protocol import CANCELLED
from .results import Delta


class TokenStream:
    """One request's answer, as it comes: an async iterator of Deltas, the last one with `finish`.

    A reader that is slower than the model gets fewer, longer Deltas. `async with` cancels what is
    unfinished on leaving.
    """

    def __init__(self, request_id: bytes, forget: Callable[[bytes], bool]) -> None:
        """`forget` cancels at the worker; it says whether there was anything to cancel."""
        self.request_id = request_id
        self._forget = forget
        self._pending: Delta | None = None
        self._news = asyncio.Event()
        self._is_exhausted = False

    def cancel(self) -> None:
        """Stops the request at once; idempotent. The iterator ends with an `abort`."""
        if self._forget(self.request_id):
            self.put(Delta([], "", CANCELLED))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._is_exhausted:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        delta, self._pending = self._pending, None
        assert delta is not None, "news without a delta"
        self._is_exhausted = delta.finish is not None
        return delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    def put(self, delta: Delta) -> None:
        """For the client: news, joined to what the reader has not taken yet."""
        if self._pending is not None:
            token_ids = self._pending.token_ids + delta.token_ids
            delta = Delta(token_ids, self._pending.text + delta.text, delta.finish)
        self._pending = delta
        self._news.set()
