"""How soon what was disturbed is repaired.

The times are simulated, so they are exact; they follow from the protocol's own constants. Those
that a Sync once a second would heal anyway are shorter than that.
"""

from __future__ import annotations

from dataclasses import dataclass

from chairlift.frontend.connection import SEND_RETRY_S, TICK_S
from chairlift.frontend.protocol import GAP_SYNC_INTERVAL_S, SYNC_INTERVAL_S
from chairlift.worker.publisher import HEARTBEAT_S

from .faults import Faults

SLACK_S = 0.01


@dataclass(frozen=True)
class Patience:
    """How long something may take once nothing is in its way any more."""

    message_s: float  # one way, and the turn that it is taken in
    news_s: float  # a token; a frame that was refused waits for the next turn, or a heartbeat
    shown_s: float  # a loss that a later frame shows
    tail_s: float  # a loss that only heartbeats show, the first of them late and the next too soon
    sync_s: float  # a lost request

    @classmethod
    def of(cls, faults: Faults) -> Patience:
        message_s = faults.delay_s + 2 * faults.step_s + SEND_RETRY_S + SLACK_S
        shown_s = 3 * message_s + 4 * faults.step_s
        tail_s = 3 * HEARTBEAT_S + GAP_SYNC_INTERVAL_S + 4 * message_s + 4 * faults.step_s
        return cls(
            message_s=message_s,
            news_s=HEARTBEAT_S + 2 * message_s + 4 * faults.step_s,
            shown_s=shown_s,
            tail_s=tail_s,
            sync_s=SYNC_INTERVAL_S + TICK_S + tail_s,
        )
