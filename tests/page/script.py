"""Steps written out by hand, for tests that say what is to be seen of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.page.rehearsal import BEGAN_US, COLUMNS

STEP_US = 20_000
PHASES_US = {
    "arrivals": 100,
    "schedule": 900,
    "forward": 15_000,
    "sample": 1_000,
    "commit": 1_000,
    "publish": 2_000,
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One request in one step; a decode unless it says otherwise."""

    request: str
    num_tokens: int = 1
    num_prompt_tokens: int = 0
    num_drafts: int = 0
    num_new_tokens: int = 1
    num_computed_tokens: int = 40
    num_total_tokens: int = 41
    num_blocks: int = 2


def chunk(request: str, size: int, computed: int, total: int) -> Row:
    """Of a prompt; the last one brings a token."""
    is_last = computed == total
    return Row(request, size, size, 0, int(is_last), computed, total + int(is_last))


def step(  # noqa: PLR0913 - a step has so many parts
    number: int,
    rows: Sequence[Row],
    *,
    waiting: Sequence[str] = (),
    preempted: Sequence[str] = (),
    finished: Sequence[Json] = (),
    began_us: int | None = None,
) -> Json:
    """20 ms long, and begun when the one before it ended."""
    return {
        "number": number,
        "began_us": BEGAN_US + number * STEP_US if began_us is None else began_us,
        "phases_us": PHASES_US,
        "num_waiting": len(waiting),
        "waiting": list(waiting),
        "num_free_blocks": 320,
        "num_shared_blocks": 30,
        "preempted": list(preempted),
        "rows": {name: [getattr(row, name) for row in rows] for name in COLUMNS},
        "finished": list(finished),
    }


def finish(request: str, reason: str = "stop", **changes: Any) -> Json:
    """With a receipt whose figures are no others'."""
    receipt = {
        "request": request,
        "queued_ms": 12.5,
        "ttft_ms": 80.0,
        "total_ms": 912.0,
        "max_gap_ms": 44.0,
        "num_prompt_tokens": 200,
        "num_cached_tokens": 64,
        "num_output_tokens": 51,
        "num_resumed_tokens": 0,
        "num_steps": 53,
        "num_chunks": 3,
        "num_recomputed_tokens": 0,
        "num_preemptions": 2,
        "mean_mates": 6.4,
        "max_mates": 9,
    }
    return {"request": request, "reason": reason, "receipt": receipt | changes}
