"""Server-sent events for a page of one's own, from either client's stream.

Reference: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, overload

import msgspec

from ..shared.errors import ChairliftError
from .results import Delta

INTERNAL_ERROR = {"type": "InternalError", "message": "internal error", "code": None}


@overload
def sse(deltas: Generator[Delta, None, None]) -> Generator[bytes, None, None]: ...
@overload
def sse(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]: ...
def sse(
    deltas: Generator[Delta, None, None] | AsyncGenerator[Delta, None],
) -> Generator[bytes, None, None] | AsyncGenerator[bytes, None]:
    """What `Client.stream` gives as the body of a WSGI answer, what `AsyncClient.stream` gives as
    that of an ASGI one.

        client = chairlift.Client()
        body = chairlift.sse(client.stream("Once upon a time", max_tokens=8))
        print(b"".join(body).decode())  # in Flask: Response(body, mimetype="text/event-stream")
        client.close()

    Each event's data is JSON: `{"text": "..."}`, the last one with a `finish_reason`, or
    `{"error": {"type", "message", "code"}}` instead of all that would follow. With queue news also
    `{"queue": {"position", "expected_wait_ms"}}`. Closing it, as servers do when the caller has
    gone, cancels the request. What is no ChairliftError is told as an internal error, and raised.
    """
    return _events(deltas) if isinstance(deltas, Generator) else _async_events(deltas)


def _events(deltas: Generator[Delta, None, None]) -> Generator[bytes, None, None]:
    with closing(deltas):
        try:
            for delta in deltas:
                if _is_told(delta):
                    yield _event(delta)
        except ChairliftError as error:
            yield _failure(error)
        except Exception:
            yield _written({"error": INTERNAL_ERROR})
            raise


async def _async_events(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                if _is_told(delta):
                    yield _event(delta)
        except ChairliftError as error:
            yield _failure(error)
        except Exception:
            yield _written({"error": INTERNAL_ERROR})
            raise


def _is_told(delta: Delta) -> bool:
    """Not half a character, whose text is empty."""
    return bool(delta.text) or delta.finish is not None or delta.queue is not None


def _event(delta: Delta) -> bytes:
    if delta.queue is not None:
        position, wait_ms = delta.queue.num_ahead, delta.queue.expected_wait_ms
        return _written({"queue": {"position": position, "expected_wait_ms": wait_ms}})
    end = {"finish_reason": delta.finish.reason} if delta.finish else {}
    return _written({"text": delta.text, **end})


def _failure(error: ChairliftError) -> bytes:
    told = {"type": type(error).__name__, "message": str(error)}
    return _written({"error": {**told, "code": getattr(error, "code", None)}})


def _written(payload: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"
