"""Where a request waits for its first step."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class QueuePlace(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """As the queue is now: who is served less, or has a better class, may still go ahead."""

    num_ahead: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # requests
    expected_wait_ms: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # a second at least
