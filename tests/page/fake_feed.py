"""GET /watch as a test wants it: what is told, when it breaks off, and to whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from chairlift.frontend.api.sending import STREAM_HEADERS

Json = dict[str, Any]


class FakeFeed:
    """Tells whoever watches; called from the test's thread, serving in the server's."""

    def __init__(self) -> None:
        self.opening: list[tuple[str, Any]] = []  # told to each watcher first
        self.is_down = False
        self.num_watchers = 0
        self._queues: dict[asyncio.Queue[bytes | None], asyncio.AbstractEventLoop] = {}

    def tell(self, event: str, data: Any) -> None:
        self._put(_event(event, data))

    def tell_steps(self, steps: Sequence[Json]) -> None:
        """And what ended in them, right after them, as the server does."""
        told = [{name: step[name] for name in step if name != "finished"} for step in steps]
        ended = [one for step in steps for one in step["finished"]]
        self._put(_event("steps", told) + (_event("ended", ended) if ended else b""))

    def comment(self) -> None:
        self._put(b": keep-alive\n\n")

    def drop(self) -> None:
        """Every watcher's connection ends."""
        self._put(None)

    def _put(self, part: bytes | None) -> None:
        for queue, loop in list(self._queues.items()):
            loop.call_soon_threadsafe(queue.put_nowait, part)

    async def watch(self, _: Request) -> Response:
        if self.is_down:
            return Response('{"error": {"message": "no feed today", "code": "x"}}', 503)
        return StreamingResponse(self._events(), headers=STREAM_HEADERS)

    async def _events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for event, data in self.opening:
            yield _event(event, data)
        self._queues[queue] = asyncio.get_running_loop()
        self.num_watchers += 1
        try:
            while (part := await queue.get()) is not None:
                yield part
        finally:
            del self._queues[queue]


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
