"""Limits as the pages in docs/ tell them."""

from __future__ import annotations

from collections.abc import Iterator

ROUND = {2**bits - 1: f"2^{bits} - 1" for bits in (31, 32, 63, 64)} | {
    2**62: "2^62",
    -(2**63): "-2^63",
}


def number(value: float) -> str:
    return ROUND.get(value, str(value)) if isinstance(value, int) else str(value)


def limits(least: float | None, most: float | None) -> Iterator[str]:
    """If there are any."""
    if least is not None and most is not None:
        yield f"{number(least)} to {number(most)}"
    elif least is not None:
        yield f"at least {number(least)}"
    elif most is not None:
        yield f"at most {number(most)}"
