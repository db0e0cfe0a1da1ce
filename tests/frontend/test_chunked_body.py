"""The short way of a stream's parts: the same bytes in the same order as by the long way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from chairlift.frontend.api.chunked_body import ChunkedBody, Outbox
from chairlift.frontend.api.sending import PUT, ImpatientSend
from chairlift.frontend.bell import Bell

START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b""}


class Transport:
    """Notes what is written, by itself and by the server's own `send`."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    async def send(self, message: Any) -> None:
        self.write(message["type"].encode() + b"|" + message.get("body", b""))


def _body(transport: Transport, outbox: Outbox, **scope: str) -> ChunkedBody:
    flow = FlowControl(cast(asyncio.Transport, transport))
    known = {"http_version": "1.1", "method": "POST", **scope}
    return ChunkedBody(transport.send, known, flow, cast(asyncio.Transport, transport), outbox)


async def _stream(body: ChunkedBody, start: dict[str, Any] = START) -> None:
    send = ImpatientSend({PUT: body.put}, body, 1.0)
    await send(start)
    for data in (b"ab", b"", b"c" * 17):
        await send.send_part(data)
    await send(END)


def test_parts_are_chunks_before_the_end() -> None:
    """Each part is a chunk, an empty one none, and the end comes after all of them."""
    transport = Transport()
    asyncio.run(_stream(_body(transport, Outbox())))
    chunks = [b"2\r\nab\r\n", b"11\r\n" + b"c" * 17 + b"\r\n"]
    assert transport.written == [b"http.response.start|", *chunks, b"http.response.body|"]


@pytest.mark.parametrize(
    ("scope", "headers"),
    [
        ({"http_version": "1.0"}, []),
        ({"method": "HEAD"}, []),
        ({}, [(b"Content-Length", b"19")]),
    ],
)
def test_what_is_not_chunked_goes_the_long_way(
    scope: dict[str, str], headers: list[tuple[bytes, bytes]]
) -> None:
    """Old clients, answers without a body, and those of a known length are h11's business."""
    transport = Transport()
    asyncio.run(_stream(_body(transport, Outbox(), **scope), START | {"headers": headers}))
    assert transport.written[1] == b"http.response.body|ab"
    assert len(transport.written) == 4


def test_streams_are_written_together() -> None:
    """What several streams say in one turn of the loop goes out after it, in order."""
    first, second = Transport(), Transport()

    async def talk() -> None:
        outbox = Outbox()
        bodies = [_body(transport, outbox) for transport in (first, second)]
        for body in bodies:
            await body(START)
        assert all(body.put(b"x") for body in bodies)
        assert len(first.written) == len(second.written) == 1
        second.is_closed = True  # its reader is gone
        await asyncio.sleep(0)

    asyncio.run(talk())
    assert first.written[1:] == [b"1\r\nx\r\n"]
    assert second.written[1:] == []


def test_nothing_is_put_while_the_reader_takes_nothing() -> None:
    """Then it is uvicorn that waits until the transport has room again."""

    async def stall() -> None:
        body = _body(Transport(), Outbox())
        await body(START)
        body._flow.pause_writing()
        assert not body.put(b"x")

    asyncio.run(stall())


def test_a_bell_is_heard_once() -> None:
    """Rung before anybody listens, or while somebody does; also after one who was cancelled."""

    async def ring() -> None:
        bell = Bell()
        bell.ring()
        bell.ring()
        await bell.heard()
        bell.heard().cancel()
        bell.ring()
        await bell.heard()
        heard = bell.heard()
        assert not heard.done()
        bell.ring()
        assert heard.done()

    asyncio.run(ring())
