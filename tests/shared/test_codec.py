"""Messages survive the wire, and nothing else gets through."""

from __future__ import annotations

import pickle
from typing import cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from chairlift.shared.codec import VERSION, decode_reply, decode_request, encode
from chairlift.shared.errors import ProtocolError
from chairlift.shared.messages import (
    Attach,
    Cancel,
    Detach,
    Extras,
    Finish,
    Frame,
    Greeting,
    Joined,
    Message,
    Submit,
    Sync,
    TokenizerFiles,
    WorkerStats,
    pack_live,
    pack_token_ids,
    unpack_live,
    unpack_token_ids,
)
from chairlift.shared.sampling_params import MAX_GRAMMAR_BYTES, Grammar, SamplingParams

FRONTEND, REQUEST = b"frontend", b"request-id-16-by"
PARAMS = SamplingParams(max_tokens=8, stop=("\n", "é"), logit_bias=((3, -1.5),), seed=2**63 - 1)
SUBMIT = Submit(FRONTEND, REQUEST, b"tokenize", pack_token_ids([1, 2]), b"", PARAMS)
FRAME = Frame(
    epoch=2**63 - 1,
    number=7,
    state="ready",
    stats=WorkerStats(num_running=1),
    unknown=b"",
    joined=[Joined(True, SUBMIT)],
    request_ids=REQUEST * 2,
    offsets=[0, 3],
    num_tokens=[2, 0],
    token_ids=pack_token_ids([5, 6]),
    text_offsets=[0, 9],
    texts=["hé", ""],
    finishes=[(1, Finish("stop", "\n"))],
)
LONGEST = "\U0001f642" * (MAX_GRAMMAR_BYTES // 4)
REQUESTS: list[Message] = [
    SUBMIT,
    structs.replace(
        SUBMIT, params=SamplingParams(max_tokens=8, grammar=Grammar("lark", LONGEST, LONGEST))
    ),
    Attach(FRONTEND, REQUEST, 3, True),
    Detach(FRONTEND, REQUEST),
    Cancel(FRONTEND, REQUEST),
    Sync(FRONTEND, 1, 2, False, True, pack_live({REQUEST: 4})),
    Sync(FRONTEND, 1, 2, True, False, None),
]
REPLIES: list[Message] = [
    Greeting(1, "model", 0, b"12345678", b"87654321", 100, 64, 0),
    TokenizerFiles(b"{}", b"{}"),
    FRAME,
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: type(m).__name__)
def test_requests_round_trip(message: Message) -> None:
    """A frontend's message is the same after the wire."""
    assert decode_request(encode(message)) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda m: type(m).__name__)
def test_replies_round_trip(message: Message) -> None:
    """A worker's message is the same after the wire."""
    assert decode_reply(encode(message)) == message


def body(message: Message) -> list[object]:
    unpacked: list[object] = msgpack.unpackb(encode(message))[1]
    return unpacked


def packed(*parts: object) -> bytes:
    return cast(bytes, msgpack.packb(list(parts)))


HOSTILE = {
    "nothing": b"",
    "no array": msgpack.packb(3),
    "no version": packed(body(SUBMIT)),
    "another version": packed(VERSION + 1, body(SUBMIT)),
    "a reply": encode(FRAME),
    "truncated": encode(SUBMIT)[:-3],
    "trailing bytes": encode(SUBMIT) + b"\x00",
    "unknown field": packed(VERSION, [*body(SUBMIT), 1]),
    "missing field": packed(VERSION, body(SUBMIT)[:6]),
    "unknown tag": packed(VERSION, ["shutdown"]),
    "short request id": packed(VERSION, ["cancel", FRONTEND, REQUEST[:-1]]),
    "text for bytes": packed(VERSION, ["cancel", "ZnJvbnRlbmQ=", REQUEST]),
    "map": packed(VERSION, {"tag": "cancel"}),
    "a map inside": packed(VERSION, ["cancel", {}, REQUEST]),
    "bad utf-8": b"\x92\x01\x91\xa2\xff\xfe",
    "array of four billion": b"\xdd\xff\xff\xff\xff",
    "deep nesting": b"\x91" * 100_000,
    "extension": b"\xc7\x01\x05\x00",
    "negative epoch": packed(VERSION, ["sync", FRONTEND, -1, 0, False, False, None]),
    "huge integer": packed(VERSION, ["sync", FRONTEND, 2**64 - 1, 0, False, False, None]),
    "not a number": packed(VERSION, [*body(SUBMIT)[:6], [8, float("nan")]]),
    "infinite bias": packed(
        VERSION,
        [*body(SUBMIT)[:6], [8, 1.0, 0, 1.0, 0.0, 0, 0.0, 0.0, 1.0, [[1, float("inf")]]]],
    ),
    "too many stops": packed(
        VERSION, [*body(SUBMIT)[:6], [8, 1.0, 0, 1.0, 0.0, 0, 0.0, 0.0, 1.0, [], ["x"] * 17]]
    ),
    "pickle": pickle.dumps({"frontend_id": FRONTEND}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_anything_else_is_refused(data: bytes) -> None:
    """Every malformed message is a ProtocolError, never another exception and never accepted."""
    with pytest.raises(ProtocolError):
        decode_request(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    """No random bytes crash the decoder of either side."""
    for decode in (decode_request, decode_reply):
        with pytest.raises(ProtocolError):
            decode(data)


@given(st.sampled_from([*REQUESTS, *REPLIES]), st.data())
def test_mutated_messages_do_no_harm(message: Message, data: st.DataObject) -> None:
    """A real message with some bytes changed is accepted as a message or refused."""
    mutated = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    for decode in (decode_request, decode_reply):
        try:
            decoded = decode(bytes(mutated))
        except ProtocolError:
            continue
        assert isinstance(decoded, Message)


def test_another_version_is_named() -> None:
    """The error says which versions meet, so that an operator knows what to upgrade."""
    with pytest.raises(ProtocolError, match=rf"version {VERSION + 1}, this one {VERSION}"):
        decode_request(packed(VERSION + 1, []))


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_token_ids_round_trip(token_ids: list[int]) -> None:
    """Token ids travel as little-endian u32."""
    assert unpack_token_ids(pack_token_ids(token_ids)) == token_ids


def test_frames_with_disagreeing_columns_are_refused() -> None:
    """A frame whose columns differ in length yields no rows."""
    good = encode(FRAME)
    assert len(list(FRAME.rows())) == 2
    for field, value in (
        ("offsets", [0]),
        ("token_ids", b""),
        ("texts", ["a"]),
        ("request_ids", REQUEST + b"x"),
        ("finishes", [(2, Finish("stop"))]),
        ("extras", [(2, Extras(b"1234"))]),
    ):
        fields = {name: getattr(FRAME, name) for name in FRAME.__struct_fields__}
        frame = Frame(**{**fields, field: value})
        assert encode(frame) != good
        with pytest.raises(ValueError):
            list(frame.rows())


def test_live_records_of_a_wrong_length_are_refused() -> None:
    """A Sync with half a record is a ValueError, which the worker counts and drops."""
    with pytest.raises(ValueError, match="20 bytes"):
        unpack_live(b"x" * 21)
