"""Where the time of the steps goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..shared.steps import PHASES


@dataclass(slots=True)
class StepTimes:
    """Seconds spent, summed; who spends them adds them. Arrivals and publishing go on between steps
    as well, in a worker that has nothing to do."""

    clock: Callable[[], float] = time.perf_counter
    arrivals_s: float = 0.0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0
    publish_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """Of steps alone."""
        return self.schedule_s + self.forward_s + self.sample_s + self.commit_s

    @property
    def phases_s(self) -> tuple[float, ...]:
        """In the order of PHASES."""
        return tuple(getattr(self, f"{phase}_s") for phase in PHASES)
