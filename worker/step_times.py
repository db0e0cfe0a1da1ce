"""Where the time of the steps goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..shared.steps import PHASES


@dataclass(slots=True)
class StepTimes:
    """Seconds spent, summed over steps; who spends them adds them."""

    clock: Callable[[], float] = time.perf_counter
    arrivals_s: float = 0.0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0
    publish_s: float = 0.0

    @property
    def total_s(self) -> float:
        return sum(self.phases_s)

    @property
    def phases_s(self) -> tuple[float, ...]:
        """In the order of PHASES."""
        return tuple(getattr(self, f"{phase}_s") for phase in PHASES)
