"""uvicorn's HTTP protocol with limits on the time and size of a request's headers, and a short way
for the parts of a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .chunked_body import ChunkedBody, Outbox
from .errors import ErrorAnswer, HttpError, answer_for
from .sending import PUT

MAX_HEADER_BYTES = 16 << 10


class TimedProtocol(H11Protocol):
    """Closes connections whose next request does not come in time.

    uvicorn itself limits only the pause between one answer and the next request's first byte.
    """

    header_timeout_s: float
    outbox: Outbox
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answer, self.app = self.app, self._answer_shortly

    async def _answer_shortly(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = ChunkedBody(send, scope, self.flow, self.transport, self.outbox)
        scope[PUT] = body.put
        await self._answer(scope, receive, body)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """In pieces, because h11 holds only what is left over against its limit."""
        for start in range(0, len(data), MAX_HEADER_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEADER_BYTES])
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, told as the API tells errors; in the midst of an answer it just ends."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # its application has nobody to answer any more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(answer_for(self._complaint(), "unknown"))
        self.transport.close()

    def _refuse(self, answer: ErrorAnswer) -> None:
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(answer.body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=answer.status, headers=headers)
        for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _complaint(self) -> HttpError:
        unread, _ = self.conn.trailing_data
        if len(unread) > MAX_HEADER_BYTES:
            message = f"the request's headers are larger than {MAX_HEADER_BYTES} bytes"
            return HttpError(431, message, code="headers_too_large")
        return HttpError(400, "this is no valid HTTP request", code="invalid_http")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The clock runs while there is no request to answer, from the first such moment."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        """The first time politely; after that, whoever does not take the rest loses it."""
        if self.transport.is_closing():
            self.transport.abort()
            return
        self.transport.close()
        self._deadline = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def timed_protocol(header_timeout_s: float) -> type[TimedProtocol]:
    """The class for one server; uvicorn makes an object of it for each connection."""

    class WithTimeout(TimedProtocol):
        pass

    WithTimeout.header_timeout_s = header_timeout_s
    WithTimeout.outbox = Outbox()
    return WithTimeout
