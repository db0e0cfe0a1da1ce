"""What one scenario did, what it found, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.integration.audit import Verdict, percentile


@dataclass(slots=True)
class Pauses:
    """Of streams that lived through a fault: from its end, or the moment of a kill, to the next
    token."""

    count: int
    median_s: float
    max_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Pauses | None:
        if not seconds:
            return None
        return cls(len(seconds), round(percentile(seconds, 50), 3), round(max(seconds), 3))


@dataclass(slots=True)
class Outcome:
    """Figures of a scenario; `failures` is what should have held and did not."""

    done: str  # what was done, with counts
    num_whole: int = 0
    num_refused: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_wrong: int = 0
    num_stuck: int = 0
    pauses: Pauses | None = None
    itl_p99_ratio: float | None = None  # disturbed to undisturbed, of those not meant
    rss_before_mib: dict[str, float] = field(default_factory=dict)
    rss_after_mib: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    foreign_cpu_percent: float = 0.0
    duration_s: float = 0.0

    @property
    def is_good(self) -> bool:
        return not self.failures

    def count(self, verdict: Verdict) -> None:
        self.num_whole += verdict.num_whole
        self.num_refused += verdict.num_refused
        self.num_lost += len(verdict.lost)
        self.num_doubled += len(verdict.doubled)
        self.num_wrong += len(verdict.wrong)
        self.num_stuck += len(verdict.stuck)
        self.failures += verdict.faults

    def require(self, condition: bool, what: str) -> None:
        """It must hold."""
        if not condition:
            self.failures.append(f"not so: {what}")
