"""What a client does not even ask for, because too much is unfinished: each check raises
OverloadedError, which says when to try again."""

from __future__ import annotations

from ..shared.errors import OverloadedError
from ..shared.messages import WorkerStats
from ..shared.queue_place import QueuePlace

MAX_LIVE_REQUESTS = 2048
MAX_UNSENT = 2048  # messages that the worker has not taken yet


def check_queue(stats: WorkerStats) -> None:
    """The worker would refuse it."""
    if 0 < stats.max_waiting <= stats.num_waiting:
        seconds = stats.retry_after_ms / 1000
        raise OverloadedError(
            f"{stats.num_waiting} requests are waiting already, which takes about "
            f"{seconds:.0f} s: try again later",
            retry_after_s=seconds,
            queue=QueuePlace(stats.num_waiting, stats.retry_after_ms),
        )


def check_unsent(num_unsent: int) -> None:
    if num_unsent >= MAX_UNSENT:
        raise OverloadedError("the worker takes no messages just now", retry_after_s=1)


def check_live(num_live: int) -> None:
    if num_live >= MAX_LIVE_REQUESTS:
        raise OverloadedError(
            f"this client has {MAX_LIVE_REQUESTS} unfinished requests, its limit",
            retry_after_s=1,
        )
