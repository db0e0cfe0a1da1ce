"""What became of each HTTP request that generated, and when, for those who trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ...shared.logs import short_hash
from ...shared.steps import Receipt
from ..response_id import ResponseId
from ..results import Delta

UNIX_BEGAN = time.time() - time.monotonic()  # when the monotonic clock was zero


@dataclass(slots=True)
class Span:
    """One request and its generations. Times in seconds of the monotonic clock."""

    request_id: str
    response_id: ResponseId
    num_choices: int
    model: str
    arrived: float
    traceparent: str = ""  # the caller's, of W3C's Trace Context
    submitted: float = 0.0
    first_token: float | None = None
    ended: float = 0.0
    outcome: str = ""  # a finish reason, an error's code, or "abandoned"
    receipts: dict[int, Receipt] = field(default_factory=dict)  # by choice

    @property
    def hashes(self) -> list[str]:
        """Of the generations, as feeds and logs know them."""
        choices = range(self.num_choices)
        return [short_hash(self.response_id.of_choice(index)) for index in choices]

    def saw(self, index: int, delta: Delta) -> None:
        if self.first_token is None and delta.token_ids:
            self.first_token = time.monotonic()
        if delta.receipt is not None:
            self.receipts[index] = delta.receipt
        if delta.finish is not None:
            self.outcome = delta.finish.code or delta.finish.reason


class Traces(Protocol):
    """Where every span goes, whoever listens besides."""

    def take(self, span: Span) -> None: ...

    def close(self) -> None: ...


class Spans:
    """Owns who is told of a span when it ends."""

    def __init__(self, traces: Traces | None = None) -> None:
        self._traces = traces
        self._listeners: list[Callable[[Span], None]] = [traces.take] if traces else []

    def listen(self, on_end: Callable[[Span], None]) -> None:
        self._listeners.append(on_end)

    def leave(self, on_end: Callable[[Span], None]) -> None:
        self._listeners.remove(on_end)

    def end(self, span: Span, *, is_abandoned: bool) -> None:
        span.ended = time.monotonic()
        if is_abandoned or not span.outcome:
            span.outcome = "abandoned"
        for on_end in [*self._listeners]:
            on_end(span)

    def close(self) -> None:
        """May take a moment: what was not sent yet goes out."""
        if self._traces is not None:
            self._traces.close()


def unix_us(seconds: float) -> int:
    """Of the monotonic clock, as microseconds since 1970."""
    return round(1e6 * (UNIX_BEGAN + seconds))
