"""What worker and parent tell each other: a page of memory that a fork shares. Knows no processes.

Each number has one writer, and lists are written before their length, so whatever instant the
worker is killed at, the parent can read what it was doing.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from enum import IntEnum

REQUEST_ID_BYTES = 16
MAX_CLEARED = 4096
MAX_IN_STEP = 2 * 4096  # two steps in flight, of as many sequences as any worker's
_WORD_BYTES = 8
_TURNS, _STEPS, _STATE, _WISH, _IN_STEP, _CLEARED = range(6)
_HEADER_BYTES = 6 * _WORD_BYTES


class State(IntEnum):
    """How far the worker is."""

    LOADING = 0
    DOWNLOADING = 1
    READY = 2
    DRAINING = 3


class Wish(IntEnum):
    """What the parent wants of it."""

    RUN = 0
    DRAIN = 1
    STOP = 2


class Pulse:
    """Made before the fork; the worker writes all but `wish`, which is the parent's.

    In a process without a parent it is a private notebook, and the wish stays RUN.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._max_in_step = max_num_seqs
        size = _HEADER_BYTES + REQUEST_ID_BYTES * (max_num_seqs + MAX_CLEARED)
        memory = memoryview(mmap.mmap(-1, size))
        cleared_at = _HEADER_BYTES + REQUEST_ID_BYTES * max_num_seqs
        self._words = memory[:_HEADER_BYTES].cast("Q")  # aligned: a word is written whole
        self._in_step = memory[_HEADER_BYTES:cleared_at]
        self._cleared = memory[cleared_at:]

    @classmethod
    def private(cls) -> Pulse:
        """For a worker that nobody watches."""
        return cls(MAX_CLEARED)

    def reset(self) -> None:
        """As if new: for the next worker, when the last one is gone."""
        for word in range(len(self._words)):
            self._words[word] = 0

    @property
    def num_turns(self) -> int:
        """Of the worker's loop: as long as it changes, the worker lives."""
        return self._words[_TURNS]

    def beat(self) -> None:
        self._words[_TURNS] += 1

    @property
    def num_steps(self) -> int:
        """That were completed."""
        return self._words[_STEPS]

    @property
    def state(self) -> State:
        return State(self._words[_STATE])

    @state.setter
    def state(self, state: State) -> None:
        self._words[_STATE] = state

    @property
    def wish(self) -> Wish:
        return Wish(self._words[_WISH])

    @wish.setter
    def wish(self, wish: Wish) -> None:
        self._words[_WISH] = wish

    def begin_step(self, request_ids: Sequence[bytes]) -> None:
        """A step of these requests is about to be computed."""
        self._words[_IN_STEP] = 0
        request_ids = request_ids[: self._max_in_step]
        _write(self._in_step, 0, request_ids)
        self._words[_IN_STEP] = len(request_ids)

    def end_step(self) -> None:
        """It has been, and nothing happened."""
        self._words[_IN_STEP] = 0
        self._words[_STEPS] += 1

    @property
    def step_request_ids(self) -> list[bytes]:
        """Of the step that is being computed, or was when the worker died."""
        return _read(self._in_step, self._words[_IN_STEP])

    def clear(self, request_id: bytes) -> None:
        """A suspect ran alone, and nothing happened."""
        num_cleared = self._words[_CLEARED]
        if num_cleared < MAX_CLEARED:  # beyond, it would have to run alone once more
            _write(self._cleared, num_cleared, [request_id])
            self._words[_CLEARED] = num_cleared + 1

    @property
    def cleared_request_ids(self) -> list[bytes]:
        return _read(self._cleared, self._words[_CLEARED])


def _write(area: memoryview, position: int, request_ids: Iterable[bytes]) -> None:
    joined = b"".join(request_ids)
    start = position * REQUEST_ID_BYTES
    area[start : start + len(joined)] = joined


def _read(area: memoryview, count: int) -> list[bytes]:
    joined = bytes(area[: count * REQUEST_ID_BYTES])
    return [joined[i : i + REQUEST_ID_BYTES] for i in range(0, len(joined), REQUEST_ID_BYTES)]
