"""What the parent of a worker sleeps on: SIGTERM and SIGINT are heard, SIGCHLD wakes it."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any

from .child import STOP_SIGNALS


class StopSignals:
    """While it is open, signals interrupt nothing: they are counted by the next `wait`."""

    def __init__(self) -> None:
        self._heard, self._wakeup = socket.socketpair()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._heard.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            self._before[number] = signal.signal(number, _do_nothing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._heard.close()
        self._wakeup.close()

    def wait(self, timeout_s: float) -> int:
        """How many stop signals have come; returns early when one has, or when a child has died."""
        ready, _, _ = select.select([self._heard], [], [], timeout_s)
        numbers = self._heard.recv(256) if ready else b""
        return sum(number in STOP_SIGNALS for number in numbers)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the wakeup to work."""
