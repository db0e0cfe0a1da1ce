"""The ASGI messages of an answer, sent to a reader who may take nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}
JSON_HEADERS = {"content-type": "application/json"}
PUT = "chairlift.put"  # in a scope: the server's way to send parts at once

Put = Callable[[bytes], bool]  # False when it has to be sent, and waited for


def _put_nothing(_: bytes) -> bool:
    return False


class ImpatientSend:
    """A `send` that gives up on a reader who takes nothing: it holds its place, its answer and
    the places of others. Raises ClientDisconnect; the server then cuts the connection.

    Belongs to the task that it is made in. Somebody has to `check` it now and then: a timer for
    each part would cost a tenth of the time.
    """

    def __init__(self, scope: Scope, send: Send, stall_timeout_s: float) -> None:
        self.put: Put = scope.get(PUT, _put_nothing)
        self._send = send
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._waits_since: float | None = None
        self._has_given_up = False

    async def send_part(self, data: bytes) -> None:
        """Past all middleware, which looks at the start alone, if it can be sent at once."""
        if data and not self.put(data):
            await self({"type": "http.response.body", "body": data, "more_body": True})

    async def __call__(self, message: Message) -> None:
        self._waits_since = self._loop.time()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if self._has_given_up and self._task and not self._task.uncancel():
                raise ClientDisconnect from None
            raise
        finally:
            self._waits_since = None

    def check(self, now: float, *, is_enough: bool) -> None:
        """Gives up if the reader is being waited for, and too long, or if that `is_enough`."""
        if self._waits_since is None or self._task is None or self._has_given_up:
            return
        if is_enough or now - self._waits_since > self._stall_timeout_s:
            self._has_given_up = True
            self._task.cancel()


async def until_hung_up(receive: Receive) -> None:
    """Raises ClientDisconnect then."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


def json_answer(content: dict[str, Any], status: int = 200) -> Response:
    """For what takes no time to make."""
    return Response(orjson.dumps(content), status, JSON_HEADERS)


async def start(send: Send, headers: dict[str, str], length: int | None = None) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": pairs})


async def send_end(send: Send, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})
