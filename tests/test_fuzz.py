"""Messages with something wrong in them, into both sides' real cores.

`scripts/fuzz` runs the same for as long as it is told to.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import msgpack
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chairlift.frontend.protocol import FrontendProtocol
from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.codec import decode_reply, decode_request, encode
from chairlift.shared.errors import ProtocolError
from chairlift.shared.messages import Message
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.tokenizer import Tokenizer
from tests.desk import ALICE, Desk, expected_tokens
from tests.golden_messages import FRONTEND, REPLIES, REQUEST, REQUESTS, path_of
from tests.simulation import NUM_BLOCKS, letters

NUMBERS = (None, True, -1, 0, 2**31, 2**63, 2**64 - 1, 1e308, float("nan"), float("inf"))
STRINGS = ("", "x" * 300, "é\x00", "submit", b"", b"\xff" * 8, b"\x00" * 16, b"\x01" * 21)
EDGES = st.sampled_from([*NUMBERS, *STRINGS, [], [[]], [0] * 600])


@pytest.mark.parametrize("name", [*REQUESTS, *REPLIES])
def test_the_bytes_of_a_message_stay(name: str) -> None:
    """What this version sends is what every release that speaks it has sent, and it reads that."""
    message = (REQUESTS | REPLIES)[name]
    data = path_of(name).read_bytes()
    assert encode(message) == data, "another format needs another version: see golden_messages.py"
    decode = decode_request if name in REQUESTS else decode_reply
    assert decode(data) == message


def nodes(value: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Paths to everything in nested lists."""
    found = [path]
    if isinstance(value, list):
        for index, child in enumerate(value):
            found += nodes(child, (*path, index))
    return found


def with_edge(data: bytes, draw: st.DataObject) -> bytes:
    """The message with one of its values replaced, at any depth; still well-formed MessagePack."""
    value = msgpack.unpackb(data, strict_map_key=False)
    path = draw.draw(st.sampled_from(nodes(value)))
    edge = draw.draw(EDGES)
    if not path:
        return cast(bytes, msgpack.packb(edge))
    parent = functools.reduce(lambda part, index: part[index], path[:-1], value)
    parent[path[-1]] = edge
    return cast(bytes, msgpack.packb(value))


def with_noise(data: bytes, draw: st.DataObject) -> bytes:
    """The message with bytes changed, cut out or put in."""
    noisy = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        start = draw.draw(st.integers(0, len(noisy)))
        stop = draw.draw(st.integers(start, min(len(noisy), start + 4)))
        noisy[start:stop] = draw.draw(st.binary(max_size=4))
    return bytes(noisy)


def damaged(messages: dict[str, Message], draw: st.DataObject) -> bytes:
    data = encode(messages[draw.draw(st.sampled_from([*messages]))])
    damage = draw.draw(st.sampled_from([with_edge, with_noise]))
    return damage(data, draw)


@functools.cache
def tokenizer() -> Tokenizer:
    return letters()


@given(st.data())
def test_a_worker_survives_damaged_requests(draw: st.DataObject) -> None:
    """Nothing that a frontend sends stops the worker, holds a block for ever, or costs another
    frontend a token."""
    with structlog.testing.capture_logs():
        desk = Desk(tokenizer())
        desk.worker.publisher.subscribed(FRONTEND, desk.now)
        desk.received[FRONTEND] = []
        desk.turn(desk.submit(ALICE, 5))
        for _ in range(draw.draw(st.integers(1, 6))):
            desk.turn(damaged(REQUESTS, draw))
        desk.turns(8)
        assert desk.tokens(ALICE) == expected_tokens(5)
        desk.worker.publisher.unsubscribed(FRONTEND, desk.now)
        for _ in range(12):
            desk.turn(seconds=5)
        assert desk.worker.blocks.num_free_blocks == NUM_BLOCKS


@given(st.data())
def test_a_frontend_survives_damaged_replies(draw: st.DataObject) -> None:
    """A damaged reply is taken or dropped whole; the frontend goes on either way."""
    protocol = FrontendProtocol(FRONTEND, 0.0)
    protocol.receive(encode(REPLIES["greeting"]), 0.0)
    params = SamplingParams(max_tokens=4)
    protocol.submit([1, 2], params, RequestOptions(REQUEST), 0.0)
    for number in range(draw.draw(st.integers(1, 6))):
        try:
            protocol.receive(damaged(REPLIES, draw), float(number))
        except (ProtocolError, ValueError):
            continue
        protocol.tick(float(number))
    for data in protocol.outgoing:
        decode_request(data)
