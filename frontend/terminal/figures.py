"""What so many steps come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...shared.steps import PHASES
from .batch_board import Column, Gap

MAX_PAUSE_US = 100_000  # a longer one is of a worker without work


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates leave out the pauses in which nothing ran. Times are in microseconds."""

    num_steps: int
    busy_us: int
    num_new_tokens: int
    num_prompt_tokens: int
    gaps_us: list[int]  # between tokens, sorted
    phases_us: tuple[float, ...]  # of a mean step

    @classmethod
    def of(cls, columns: Iterable[Column | Gap]) -> Figures:
        steps = [column for column in columns if isinstance(column, Column)]
        records = [step.record for step in steps]
        count = max(1, len(steps))
        sums = [sum(record.phases_us[i] for record in records) for i in range(len(PHASES))]
        return cls(
            num_steps=len(steps),
            busy_us=_busy_us(steps),
            num_new_tokens=sum(sum(record.num_new_tokens) for record in records),
            num_prompt_tokens=sum(sum(record.num_prompt_tokens) for record in records),
            gaps_us=sorted(gap for step in steps for gap in step.gaps_us),
            phases_us=tuple(total / count for total in sums),
        )

    @property
    def step_us(self) -> float:
        return sum(self.phases_us)

    def per_s(self, count: int) -> float:
        return 1e6 * count / self.busy_us if self.busy_us else 0.0

    def gap_us(self, percent: int) -> int | None:
        """Inter-token latency; the nearest rank."""
        rank = math.ceil(percent / 100 * len(self.gaps_us))
        return self.gaps_us[max(0, rank - 1)] if self.gaps_us else None


def _busy_us(steps: Sequence[Column]) -> int:
    busy_us, end_us = 0, None
    for record in (step.record for step in steps):
        pause_us = 0 if end_us is None else max(0, record.began_us - end_us)
        busy_us += record.duration_us + (pause_us if pause_us < MAX_PAUSE_US else 0)
        end_us = record.began_us + record.duration_us
    return busy_us
