"""What the paced worker saw of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Course:
    """One entry a step; times of the clock that all processes share."""

    made_s: list[float] = field(default_factory=list)  # when its tokens were there
    num_tokens: list[int] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)  # the thread's own time
    messaging_s: list[float] = field(default_factory=list)  # likewise: arrivals and publishing
