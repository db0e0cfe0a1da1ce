"""The process and the event loop that a client's sockets belong to."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from ..shared.errors import ClientClosedError


@dataclass(frozen=True, slots=True)
class Home:
    """Where a client was first used, and may be used from then on."""

    pid: int
    loop: asyncio.AbstractEventLoop

    @classmethod
    def here(cls) -> Home:
        return cls(os.getpid(), asyncio.get_running_loop())

    @property
    def is_forked_from(self) -> bool:
        """Whether this is another process: what the client holds is its parent's."""
        return self.pid != os.getpid()

    def check_is_here(self) -> None:
        """Raises ClientClosedError."""
        if self.is_forked_from:
            raise ClientClosedError(
                "the client belongs to another process, which used it before this one was forked: "
                "make one here, or use it in the children only"
            )
        if self.loop is not asyncio.get_running_loop():
            raise ClientClosedError(
                "the client belongs to another event loop: make one here, or a chairlift.Client, "
                "which every thread may use"
            )
