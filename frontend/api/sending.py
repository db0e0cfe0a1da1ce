"""The ASGI messages of an answer, sent to a reader who may take nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Send

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}
JSON_HEADERS = {"content-type": "application/json"}


class ImpatientSend:
    """A `send` that gives up on a reader who takes nothing: it holds its place, its answer and
    the places of others. Raises ClientDisconnect; the server then cuts the connection."""

    def __init__(self, send: Send, stall_timeout_s: float) -> None:
        self._send = send
        self._stall_timeout_s = stall_timeout_s
        self._limit: asyncio.Timeout | None = None

    async def __call__(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s) as self._limit:
                await self._send(message)
        except TimeoutError:
            raise ClientDisconnect from None
        finally:
            self._limit = None

    def give_up(self) -> None:
        """At once, if the reader is being waited for."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


def json_answer(content: dict[str, Any], status: int = 200) -> Response:
    """For what takes no time to make."""
    return Response(orjson.dumps(content), status, JSON_HEADERS)


async def start(send: Send, headers: dict[str, str], length: int | None = None) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": pairs})


async def send_part(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def send_end(send: Send, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})
