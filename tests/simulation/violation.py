"""What a simulation finds."""

from __future__ import annotations


class Violation(AssertionError):
    """A property that does not hold, and how it shows."""

    def __init__(self, rule: str, details: str) -> None:
        super().__init__(f"{rule}: {details}")
        self.rule = rule
