"""Which row of a picture a request has."""

from __future__ import annotations


class Lanes:
    """Gives each request the first free lane, until it leaves."""

    def __init__(self) -> None:
        self._lanes: dict[str, int] = {}

    def lane_of(self, request: str) -> int:
        if request not in self._lanes:
            taken = {*self._lanes.values()}
            self._lanes[request] = next(n for n in range(len(taken) + 1) if n not in taken)
        return self._lanes[request]

    def leave(self, request: str) -> None:
        self._lanes.pop(request, None)
