"""What strangers and broken frontends may send."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import cast

import msgpack
import zmq

from chairlift.shared.addresses import Endpoints
from chairlift.shared.codec import MAX_REQUEST_BYTES, decode_request, encode
from chairlift.shared.errors import ProtocolError
from tests.golden_messages import REQUESTS

EDGES = [None, -1, 2**63, 2**64 - 1, 1e308, float("nan"), "", "x" * 5000, b"", b"\xff" * 21, [], {}]
SCANS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"SSH-2.0-scanner\r\n",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL",  # ZMTP, cut off
    b"\x01\x00\x00" + b"\xff" * 60,
    b"",
]


def hostile_messages(count: int, choose: random.Random) -> Iterator[bytes]:
    """None of them is a message, however near it comes."""
    kinds = (_random, _truncated, _flipped, _nested, _replaced, _of_version_99, _announcing)
    while count:
        data = choose.choice(kinds)(choose)
        if not _is_message(data):
            count -= 1
            yield data


def _is_message(data: bytes) -> bool:
    try:
        decode_request(data)
    except ProtocolError:
        return False
    return True


def _golden(choose: random.Random) -> bytes:
    return encode(REQUESTS[choose.choice(list(REQUESTS))])


def _random(choose: random.Random) -> bytes:
    return choose.randbytes(choose.randrange(300))


def _truncated(choose: random.Random) -> bytes:
    data = _golden(choose)
    return data[: choose.randrange(len(data))]


def _flipped(choose: random.Random) -> bytes:
    data = bytearray(_golden(choose))
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    return bytes(data)


def _nested(choose: random.Random) -> bytes:
    return choose.choice([b"\x91", b"\x81\x01"]) * choose.randint(100, 100_000)


def _replaced(choose: random.Random) -> bytes:
    """One field is of another type, or beyond its limits."""
    version, fields = msgpack.unpackb(_golden(choose))
    fields[choose.randrange(len(fields))] = choose.choice(EDGES)
    return cast(bytes, msgpack.packb([version, fields]))


def _of_version_99(choose: random.Random) -> bytes:
    return b"\x92\x63" + _golden(choose)[2:]


def _announcing(choose: random.Random) -> bytes:
    """More than ever comes."""
    return choose.choice([b"\xdd", b"\xdf", b"\xdb", b"\xc6"]) + b"\xff\xff\xff\xff"


class Stranger:
    """A socket to where the worker takes requests, without a frontend behind it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.linger = 2000
        self._push.sndhwm = 0
        self._push.connect(Endpoints.parse(address).requests)

    def send(self, data: bytes) -> None:
        self._push.send(data)

    def send_too_large(self) -> None:
        """The worker hangs up on whoever does that."""
        self._push.send(bytes(MAX_REQUEST_BYTES + 1))

    def close(self) -> None:
        self._push.close()
        self._context.term()


async def scan(port: int, count: int, choose: random.Random) -> None:
    """So many connections that say something else than ZeroMQ does; some stay half-open."""
    half_open = []
    for number in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(choose.choice(SCANS) + choose.randbytes(choose.randrange(200)))
        if number % 4:
            writer.transport.abort()
        else:
            half_open.append(writer)
        await asyncio.sleep(0)
    for writer in half_open:
        writer.close()
