"""What someone types, or a script writes: one turn of a conversation after the other."""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

PROMPT = "> "


class Keyboard:
    """Standard input. At a terminal a line can be edited and earlier ones brought back, and what
    is pasted is one turn, however many lines it has; otherwise each line is a turn."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")

    def turns(self) -> Iterator[str]:
        """Until its end, or Ctrl-C at the prompt; none of them is empty."""
        lines = self._edited() if self.is_terminal else sys.stdin
        for line in lines:
            if line.strip():
                yield line.rstrip("\n")

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Within its block what is typed is not shown, and waits for the next turn. Ctrl-C stays a
        signal."""
        if not self.is_terminal:
            yield
            return
        former = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)

    def _edited(self) -> Iterator[str]:
        _load_line_editor()
        while True:
            try:
                yield input(PROMPT)
            except (EOFError, KeyboardInterrupt):
                print()
                return


def _load_line_editor() -> None:
    """`input` uses it from now on. Python turns off that a paste is told from typing."""
    with suppress(ImportError):  # not every Python has it
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
