"""The short way of a stream's parts to the socket.

h11 and uvicorn take 3 µs for each, and a write between two computations costs half as much
again as one that follows another.
"""

from __future__ import annotations

import asyncio

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl


class Outbox:
    """What many streams have to write, all of it once the loop has gone round."""

    def __init__(self) -> None:
        self._letters: list[tuple[asyncio.Transport, bytes]] = []

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        if not self._letters:
            asyncio.get_running_loop().call_soon(self.empty)
        self._letters.append((transport, data))

    def empty(self) -> None:
        """Transports that were closed meanwhile drop it, as they do anything."""
        letters, self._letters = self._letters, []
        for transport, data in letters:
            if not transport.is_closing():
                transport.write(data)


class ChunkedBody:
    """uvicorn's `send`, and a way past it for the parts between the head and the end of a body in
    chunks (RFC 9112, section 7.1)."""

    def __init__(
        self,
        send: Send,
        scope: Scope,
        flow: FlowControl,
        transport: asyncio.Transport,
        outbox: Outbox,
    ) -> None:
        self._send = send
        self._flow = flow
        self._transport = transport
        self._outbox = outbox
        self._may_be_chunked = scope["http_version"] == "1.1" and scope["method"] != "HEAD"
        self._is_chunked = False

    def put(self, data: bytes) -> bool:
        """Sends a part, unless it has to be waited for or is no chunk."""
        if not self._is_chunked or self._flow.write_paused:
            return False
        if data:
            self._outbox.put(self._transport, b"%x\r\n%b\r\n" % (len(data), data))
        return True

    async def __call__(self, message: Message) -> None:
        self._outbox.empty()
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            self._is_chunked = self._may_be_chunked and b"content-length" not in names
        await self._send(message)
