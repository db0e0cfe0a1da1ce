"""Messages in a line, for who replays a seed."""

from __future__ import annotations

from chairlift.shared.codec import decode_reply, decode_request
from chairlift.shared.errors import ProtocolError
from chairlift.shared.messages import (
    Attach,
    Frame,
    Submit,
    Sync,
    Watch,
    split_ids,
    unpack_live,
)


def abridged(data: bytes) -> str:
    """What matters of a message of either side."""
    try:
        message = decode_request(data)
    except ProtocolError:
        reply = decode_reply(data)
        return _frame(reply) if isinstance(reply, Frame) else type(reply).__name__
    name = type(message).__name__
    if isinstance(message, Sync):
        live = unpack_live(message.live) if message.live is not None else {}
        held = " ".join(f"{_short(rid)}:{count}" for rid, count in live.items())
        return f"{name} of frame {message.frame_number}{' gap' * message.has_gap} [{held}]"
    if isinstance(message, Watch):
        return name
    details = ""
    if isinstance(message, Submit):
        details = f" holding {len(message.output_token_ids) // 4}, generation {message.generation}"
    elif isinstance(message, Attach):
        details = f" holding {message.num_held}{' to take over' * message.takes_over}"
    return f"{name} {_short(message.request_id)}{details}"


def _frame(frame: Frame) -> str:
    if frame.is_heartbeat:
        return f"heartbeat {frame.number}"
    words = [f"frame {frame.number}"]
    words += [f"joined {_short(joined.request.request_id)}" for joined in frame.joined]
    for row in frame.rows():
        end = f" {row.finish.code or row.finish.reason}" if row.finish else ""
        words.append(f"{_short(row.request_id)}:{row.offset}+{len(row.token_ids)}{end}")
    words += [f"unknown {_short(request_id)}" for request_id in split_ids(frame.unknown)]
    return " ".join(words)


def _short(request_id: bytes) -> str:
    return request_id.hex()[:6]
