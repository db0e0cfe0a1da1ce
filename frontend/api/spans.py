"""What became of each HTTP request that generated, and when, for those who trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...shared.logs import short_hash
from ...shared.messages import Finish
from ...shared.steps import Receipt
from ..response_id import ResponseId
from ..results import Delta

if TYPE_CHECKING:
    from .otel_exporter import OtelExporter

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
    is_abandoned: bool = False
    finishes: dict[int, Finish] = field(default_factory=dict)  # by choice
    receipts: dict[int, Receipt] = field(default_factory=dict)  # by choice

    @property
    def hashes(self) -> list[str]:
        """Of the generations, as feeds and logs know them."""
        choices = range(self.num_choices)
        return [short_hash(self.response_id.of_choice(index)) for index in choices]

    @property
    def failure(self) -> str:
        """The code of what failed, if anything did."""
        codes = [finish.code for _, finish in sorted(self.finishes.items()) if finish.code]
        return codes[0] if codes else ""

    @property
    def outcome(self) -> str:
        """The code of a failure, "abandoned" where the caller left, else the first choice's
        finish reason."""
        reasons = [finish.reason for _, finish in sorted(self.finishes.items())]
        is_cut = self.is_abandoned or not reasons
        return self.failure or ("abandoned" if is_cut else reasons[0])

    def saw(self, index: int, delta: Delta) -> None:
        if self.first_token is None and delta.token_ids:
            self.first_token = time.monotonic()
        if delta.receipt is not None:
            self.receipts[index] = delta.receipt
        if delta.finish is not None:
            self.finishes[index] = delta.finish


class Spans:
    """Owns who is told of a span when it ends."""

    def __init__(self, exporter: OtelExporter | None = None) -> None:
        self._exporter = exporter
        self._listeners: list[Callable[[Span], None]] = [exporter.take] if exporter else []

    def listen(self, on_end: Callable[[Span], None]) -> None:
        self._listeners.append(on_end)

    def leave(self, on_end: Callable[[Span], None]) -> None:
        self._listeners.remove(on_end)

    def end(self, span: Span, *, is_abandoned: bool) -> None:
        span.ended, span.is_abandoned = time.monotonic(), is_abandoned
        for on_end in [*self._listeners]:
            on_end(span)

    def close(self) -> None:
        """May take a moment: what was not sent yet goes out."""
        if self._exporter is not None:
            self._exporter.close()


def unix_us(seconds: float) -> int:
    """Of the monotonic clock, as microseconds since 1970."""
    return round(1e6 * (UNIX_BEGAN + seconds))
