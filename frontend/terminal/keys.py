"""Single keys of whoever sits at the terminal, without Enter."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any, Self

MAX_TYPED = 64  # bytes at a time
SEQUENCES = {"\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down"}
TYPED = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|[^\x1b]")


class Keys:
    """Within its block each key that is pressed is handed on, arrows as "up" and "down". Ctrl-C
    stays a signal. Does nothing where standard input is no terminal."""

    def __init__(self, on_key: Callable[[str], None]) -> None:
        self._on_key = on_key
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._former: list[Any] = []

    @property
    def is_there(self) -> bool:
        return self._fd is not None

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._former = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            asyncio.get_running_loop().add_reader(self._fd, self._read, self._fd)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._former)

    def _read(self, fd: int) -> None:
        typed = os.read(fd, MAX_TYPED).decode(errors="replace")
        if not typed:  # its end
            asyncio.get_running_loop().remove_reader(fd)
        pressed: list[str] = TYPED.findall(typed)
        for key in pressed:
            self._on_key(SEQUENCES.get(key, key))
