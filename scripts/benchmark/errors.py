"""What can go wrong and is the caller's to mend."""

from __future__ import annotations


class BenchmarkError(Exception):
    """Its text says what to change."""
