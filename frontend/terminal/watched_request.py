"""One request, as far as its steps were seen."""

from __future__ import annotations

from ...shared.steps import Ended, Row


class WatchedRequest:
    """Counts are of the steps that were told; the receipt of its end has them all."""

    def __init__(self, hash: str) -> None:
        self.hash = hash
        self.row: Row | None = None  # its newest
        self.num_steps = 0
        self.num_new_tokens = 0
        self.num_preemptions = 0
        self.max_gap_us = 0
        self.last_number = 0  # of the step that it was in last
        self.is_waiting = False
        self.ended: Ended | None = None
        self.is_lost = False  # its end was missed
        self._last_step_us: int | None = None
        self._last_token_us: int | None = None

    @property
    def is_over(self) -> bool:
        return self.is_lost or self.ended is not None

    @property
    def state(self) -> str:
        if self.ended is not None:
            return self.ended.reason
        if self.is_lost:
            return "gone"
        if self.is_waiting:
            return "waiting"
        return "prefill" if self.row is None or self.row.is_chunk else "decode"

    def take(self, row: Row, number: int, now_us: int) -> int | None:
        """A step that ended now; gives microseconds since its last token, if it got another."""
        if self._last_step_us is not None:
            self.max_gap_us = max(self.max_gap_us, now_us - self._last_step_us)
        self._last_step_us, self.last_number, self.row = now_us, number, row
        self.is_waiting = False
        self.num_steps += 1
        self.num_new_tokens += row.num_new_tokens
        if not row.num_new_tokens:
            return None
        before, self._last_token_us = self._last_token_us, now_us
        return None if before is None else now_us - before

    def lose_blocks(self) -> None:
        self.num_preemptions += 1
        self.is_waiting = True
