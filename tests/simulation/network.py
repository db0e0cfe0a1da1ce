"""Connections that keep the order, hold so much, and lose what they are told to."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from chairlift.frontend.protocol import GAP_SYNC_INTERVAL_S

NEVER = float("inf")


class Pipe:
    """One direction of a connection. Knows when it was last disturbed, for who may be impatient."""

    def __init__(self, draw: random.Random, max_delay_s: float, capacity: int) -> None:
        self.is_open = False
        self.opens_at = NEVER
        self.opened_at = 0.0
        self.held_until = 0.0  # a spike of delay
        self.loss = 0.0
        self.doubling = 0.0
        self.lost_at = float("-inf")
        self.shown_at: tuple[float, ...] = ()  # arrivals that show the last loss to who looks
        self.num_accepted = self.num_lost = 0
        self.is_pristine = True  # nothing was ever lost
        self._random = draw
        self._max_delay_s = max_delay_s
        self._capacity = capacity
        self._queue: deque[tuple[float, int, bytes]] = deque()  # with time of arrival and number

    @property
    def due(self) -> float:
        """When something arrives, or the connection is made."""
        if not self.is_open:
            return self.opens_at
        return self._queue[0][0] if self._queue else NEVER

    @property
    def num_gone(self) -> int:
        """Up to the first that is still on its way; what was lost behind it doesn't count yet."""
        return self._queue[0][1] - 1 if self._queue else self.num_accepted

    @property
    def is_empty(self) -> bool:
        return not self._queue

    def open(self, now: float) -> None:
        self.is_open, self.opened_at, self.opens_at = True, now, NEVER

    def close(self, now: float, opens_at: float) -> None:
        """The connection breaks and will be made again."""
        self.is_open, self.opens_at = False, opens_at

    def send(self, data: bytes, now: float) -> bool:
        """False when there is no room, or nobody to send to."""
        if not self.is_open or len(self._queue) >= self._capacity:
            return False
        self.num_accepted += 1
        if self.loss and self._random.random() < self.loss:
            self.lose(now)
            return True
        latest = self._queue[-1][0] if self._queue else 0.0
        delay_s = self._random.random() * self._max_delay_s
        arrives_at = max(now + delay_s, latest, self.held_until)
        self._queue.append((arrives_at, self.num_accepted, data))
        self._show(arrives_at)
        if self.doubling and self._random.random() < self.doubling:
            self.num_accepted += 1
            self._queue.append((arrives_at, self.num_accepted, data))
            self.is_pristine = False
        return True

    def take(self, now: float) -> list[bytes]:
        taken: list[bytes] = []
        while self._queue and self._queue[0][0] <= now:
            taken.append(self._queue.popleft()[2])
        return taken

    def cut(self, now: float) -> list[bytes]:
        """All from a random place on is lost: what it was."""
        num_kept = self._random.randint(0, len(self._queue))
        lost = [self._queue.pop()[2] for _ in range(len(self._queue) - num_kept)]
        for _ in lost:
            self.lose(now)
        self.is_pristine = False
        return lost[::-1]

    def drop(self, now: float) -> None:
        """All of it is lost."""
        for _ in self._queue:
            self.lose(now)
        self._queue.clear()

    def lose(self, now: float) -> None:
        self.num_lost += 1
        self.lost_at, self.is_pristine, self.shown_at = now, False, ()

    def _show(self, arrives_at: float) -> None:
        """The first may come too soon after another for an answer, the second doesn't."""
        if not self.shown_at:
            self.shown_at = (arrives_at,)
        elif len(self.shown_at) == 1 and arrives_at > self.shown_at[0] + GAP_SYNC_INTERVAL_S:
            self.shown_at += (arrives_at,)


@dataclass
class Pipes:
    """Both directions."""

    requests: Pipe
    frames: Pipe
