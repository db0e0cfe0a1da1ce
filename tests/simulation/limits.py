"""The protocol's limits, so small that a simulation of seconds comes up against them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest.mock import patch

from chairlift.frontend import protocol
from chairlift.worker import publisher

SMALL: tuple[tuple[ModuleType, str, int], ...] = (
    (publisher, "MAX_UNACKNOWLEDGED_FRAMES", 16),
    (publisher, "MAX_FRAME_ROWS", 6),
    (publisher, "MAX_FRAME_BYTES", 700),
    (protocol, "ACKNOWLEDGE_EVERY", 4),
)


@contextmanager
def small_limits() -> Iterator[None]:
    """A window that a stalled frontend fills, and frames that don't hold all news."""
    with ExitStack() as stack:
        for module, name, value in SMALL:
            stack.enter_context(patch.object(module, name, value))
        yield
