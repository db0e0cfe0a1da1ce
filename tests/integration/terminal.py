"""A program in a terminal of its own, where a test types and reads what is shown."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import Self

from tests.integration.processes import environment_of

TIMEOUT_S = 60.0
CTRL_C, CTRL_D, ENTER, UP = "\x03", "\x04", "\r", "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"  # as terminals send one
PROMPT = r"\x1b\[\?2004h> "  # as readline shows it
# The terminal of a session is the first that its leader opens: then Ctrl-C is a signal.
CONTROLLED = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")


class Terminal:
    """Within its block: `python ARGUMENTS`, killed if it has not ended by then."""

    def __init__(self, *arguments: str, **settings: object) -> None:
        ours, its = pty.openpty()
        self._fd = ours
        self._unread = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            env=environment_of(settings) | {"TERM": "xterm", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        os.close(its)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str) -> str:
        """What is shown up to there, without the codes for colours and the cursor; bounded."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := re.search(pattern, self._unread)):
            self._read(deadline, pattern)
        shown, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return ESCAPES.sub("", shown)

    def exit_code(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def exit_code_after(self, key: str) -> int:
        """Pressed as often as it takes: Python forgets a Ctrl-C that comes in the moment between
        showing a prompt and waiting at it."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        return self.exit_code()

    def _read(self, deadline: float, wanted: str) -> None:
        wait_s = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([self._fd], [], [], wait_s)
        try:
            text = os.read(self._fd, 65_536).decode(errors="replace") if readable else ""
        except OSError:  # what Linux says when nobody has the other end open
            text = ""
        assert text, f"{wanted!r} never came, only {self._unread!r}"
        self._unread += text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)
