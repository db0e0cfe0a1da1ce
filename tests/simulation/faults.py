"""What may go wrong in one simulation: each kind of trouble is on in some seeds, off in others.

(Swarm testing: Groce et al., ISSTA 2012. Trouble of all kinds at once hides what few kinds show.)
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Faults:
    """The kinds that are on, and the sizes of things."""

    crashes: bool
    mid_step_crashes: bool
    poison: bool
    pauses: bool
    frame_loss: bool
    request_loss: bool
    doubled: bool
    stale_frames: bool
    spikes: bool
    resets: bool
    freezes: bool
    long_freezes: bool
    frontend_deaths: bool
    cancels: bool
    storms: bool
    detaches: bool
    joins: bool
    watchers: bool
    takeovers: bool
    conflicts: bool
    ttls: bool
    stops: bool
    bytes: bool
    step_s: float
    delay_s: float
    frames_capacity: int
    requests_capacity: int
    grace_s: float
    duration_s: float
    num_asks: int

    @classmethod
    def drawn(cls, draw: random.Random, wanted: Collection[str] = ()) -> Faults:
        """What is `wanted` is on in any case."""
        share = draw.choice([0.15, 0.35, 0.6])
        kinds = {f.name: draw.random() < share for f in fields(cls) if f.type == "bool"}
        kinds |= dict.fromkeys(wanted, True)
        is_long = kinds["long_freezes"]
        return cls(
            **kinds,
            step_s=draw.choice([0.005, 0.01, 0.02, 0.05]),
            delay_s=draw.choice([0.0, 0.001, 0.005, 0.02]),
            frames_capacity=draw.choice([3, 10, 1000]),
            requests_capacity=draw.choice([8, 1000]),
            grace_s=draw.choice([0.0, 1.0, 3.0]),
            duration_s=25.0 if is_long else draw.uniform(2, 8),
            num_asks=draw.randint(5, 35),
        )

    @property
    def is_punctual(self) -> bool:
        """Whether messages arrive, and in no time."""
        lost = self.frame_loss or self.request_loss or self.resets
        late = self.pauses or self.spikes or self.freezes or self.long_freezes
        return not (lost or late or self.crashes or self.mid_step_crashes or self.poison)

    def __str__(self) -> str:
        on = [f.name for f in fields(self) if getattr(self, f.name) is True]
        sizes = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.type != "bool"]
        return ", ".join(on + sizes)
