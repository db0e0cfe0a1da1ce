"""What wakes one reader. An asyncio.Event may have many, and takes longer."""

from __future__ import annotations

import asyncio


class Bell:
    """A ring that nobody waits for is heard by who waits next."""

    def __init__(self) -> None:
        self._was_missed = False
        self._waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        if self._waiting is None or self._waiting.done():
            self._was_missed = True
        else:
            self._waiting.set_result(None)

    def heard(self) -> asyncio.Future[None]:
        """To be awaited, by one reader at a time."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._was_missed:
            self._was_missed = False
            self._waiting.set_result(None)
        return self._waiting
