"""Who watches the worker's steps through one client."""

from __future__ import annotations

from collections import deque
from typing import Self
from weakref import WeakSet

from ..shared.messages import Steps
from .bell import Bell
from .connection import Connection

MAX_PENDING = 64  # messages, about three seconds


class StepFeed:
    """The steps of the worker as they run: an async iterator of `Steps`.

    Begins with the next step and ends with the client. A reader that falls behind loses the
    oldest; a jump in their numbers shows it. `async with`, or `close`, ends the watching.
    """

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        self._pending: deque[Steps] = deque(maxlen=MAX_PENDING)
        self._news = Bell()
        self.is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Steps:
        while not self._pending:
            if self.is_closed:
                raise StopAsyncIteration
            await self._news.heard()
        return self._pending.popleft()

    def close(self) -> None:
        """Idempotent; what is pending is still to be had."""
        if not self.is_closed:
            self.is_closed = True
            self._watchers.leave(self)
            self._news.ring()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def put(self, steps: Steps) -> None:
        """For the client."""
        self._pending.append(steps)
        self._news.ring()


class Watchers:
    """Owns the feeds of one client. The worker is asked for steps as long as there is one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._feeds: WeakSet[StepFeed] = WeakSet()  # one that is dropped does not watch

    def join(self) -> StepFeed:
        feed = StepFeed(self)
        self._feeds.add(feed)
        self._connection.protocol.wants_steps = True
        self._connection.speak()
        return feed

    def leave(self, feed: StepFeed) -> None:
        self._feeds.discard(feed)
        self._connection.protocol.wants_steps = bool(self._feeds)

    def put(self, steps: Steps) -> None:
        self._connection.protocol.wants_steps = bool(self._feeds)
        for feed in self._feeds:
            feed.put(steps)

    def close(self) -> None:
        for feed in [*self._feeds]:
            feed.close()
