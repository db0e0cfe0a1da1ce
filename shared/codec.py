"""The one place where messages become bytes: MessagePack arrays `[version, [tag, field, ...]]`.

Decoding trusts nothing: msgpack bounds what is allocated, msgspec checks every type and limit.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack
import msgspec

from .errors import ProtocolError
from .messages import (
    MAX_FRAME_ROWS,
    MAX_PROMPT_TOKENS,
    Attach,
    Cancel,
    Detach,
    Frame,
    Greeting,
    Message,
    Steps,
    Submit,
    Sync,
    TokenizerFiles,
    Watch,
)
from .sampling_params import MAX_GRAMMAR_BYTES

VERSION = 1
MAX_REQUEST_BYTES = 9 << 20  # prompt and output tokens at their limits, and the rest
MAX_REPLY_BYTES = 64 << 20  # the largest tokenizer files known are a third of this

_REQUEST_LIMITS = {
    "max_str_len": MAX_GRAMMAR_BYTES,
    "max_bin_len": 4 * MAX_PROMPT_TOKENS,
    "max_array_len": 1024,
    "max_map_len": 0,
    "max_ext_len": 0,
}
_REPLY_LIMITS = {
    "max_str_len": 8 << 20,
    "max_bin_len": MAX_REPLY_BYTES,
    "max_array_len": MAX_FRAME_ROWS,
    "max_map_len": 0,
    "max_ext_len": 0,
}


def encode(message: Message) -> bytes:
    body = msgspec.to_builtins(message, builtin_types=(bytes,))
    return cast(bytes, msgpack.packb([VERSION, body], use_bin_type=True))


Request = Submit | Attach | Detach | Cancel | Sync | Watch
Reply = Greeting | TokenizerFiles | Frame | Steps


def decode_request(data: bytes) -> Request:
    """A frontend's message; raises ProtocolError for anything else."""
    request: Request = _decode(data, Request, _REQUEST_LIMITS)
    return request


def decode_reply(data: bytes) -> Reply:
    """A worker's message; raises ProtocolError for anything else."""
    reply: Reply = _decode(data, Reply, _REPLY_LIMITS)
    return reply


def _decode(data: bytes, types: Any, limits: dict[str, int]) -> Any:
    try:
        version, body = msgpack.unpackb(data, raw=False, **limits)
    except Exception as error:  # msgpack raises a dozen kinds, ValueError to StackError
        raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from None
    if version != VERSION:
        raise ProtocolError(
            f"the other side speaks protocol version {version!r:.20}, this one {VERSION}: "
            "install the same chairlift on both"
        )
    try:
        return msgspec.convert(body, types, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {error}") from None
