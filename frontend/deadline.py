"""When a call has to be over, whatever it waits for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..shared.errors import DeadlineExceededError, InvalidRequestError
from ..shared.messages import MAX_TTL_MS

MAX_TIMEOUT_S = MAX_TTL_MS / 1000


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, or none: then it takes as long as it takes."""

    at: float | None

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """Raises InvalidRequestError for what is no time to wait."""
        if timeout_s is None:
            return cls(None)
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            message = (
                f"timeout_s is more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds, or None for as "
                "long as it takes"
            )
            raise InvalidRequestError(message, param="timeout_s")
        return cls(time.monotonic() + timeout_s)

    @property
    def left_s(self) -> float | None:
        """More than 0, or raises DeadlineExceededError."""
        if self.at is None:
            return None
        left_s = self.at - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError("timeout_s was over before the worker was asked")
        return left_s

    def at_most(self, limit_s: float) -> float:
        """What is left, or the limit if that is less; raises as `left_s`."""
        left_s = self.left_s
        return limit_s if left_s is None else min(limit_s, left_s)
