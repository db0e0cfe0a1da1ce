"""Requests that may have killed a worker, and those that did. Pure: knows no processes.

Whoever was in a fatal step is a suspect and runs a step alone before it joins the others again.
If the worker dies in that lone step as well, the request is condemned; one that survives it is
cleared. An operator's or the kernel's SIGKILL says little about the request that happened to be
alone, so it takes several of those.
"""

from __future__ import annotations

from collections.abc import Iterable

from .pulse import MAX_CLEARED, Pulse

MAX_CHANCES = 3
MAX_SUSPECTS = MAX_CLEARED
MAX_CONDEMNED = 65_536


class Quarantine:
    """Kept by the parent and learning from each death; a worker has the copy of its fork.

    A request is a suspect, condemned, or neither; never both. The oldest are forgotten first.
    """

    def __init__(self, pulse: Pulse | None = None) -> None:
        self._pulse = pulse or Pulse.private()
        self._suspects: dict[bytes, int] = {}  # and how often chance has hit it alone
        self._condemned: dict[bytes, None] = {}

    def is_suspect(self, request_id: bytes) -> bool:
        return request_id in self._suspects and request_id not in self._pulse.cleared_request_ids

    def is_condemned(self, request_id: bytes) -> bool:
        return request_id in self._condemned

    def learn(self, *, by_chance: bool) -> bytes | None:
        """Takes in what the pulse of a worker that died says; the request that is condemned now,
        if one is. `by_chance`: by a SIGKILL from outside."""
        self._absolve(self._pulse.cleared_request_ids)
        in_step = self._pulse.step_request_ids
        if len(in_step) == 1 and in_step[0] in self._suspects:
            return self._strike(in_step[0], by_chance)
        for request_id in in_step:
            self._suspects.setdefault(request_id, 0)
        _forget_oldest(self._suspects, MAX_SUSPECTS)
        return None

    def _absolve(self, request_ids: Iterable[bytes]) -> None:
        for request_id in request_ids:
            self._suspects.pop(request_id, None)

    def _strike(self, request_id: bytes, by_chance: bool) -> bytes | None:
        self._suspects[request_id] += 1 if by_chance else MAX_CHANCES
        if self._suspects[request_id] < MAX_CHANCES:
            return None
        del self._suspects[request_id]
        self._condemned[request_id] = None
        _forget_oldest(self._condemned, MAX_CONDEMNED)
        return request_id


def _forget_oldest(requests: dict[bytes, int] | dict[bytes, None], limit: int) -> None:
    for request_id in list(requests)[: max(0, len(requests) - limit)]:
        del requests[request_id]
