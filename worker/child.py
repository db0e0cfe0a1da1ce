"""A forked process that ends with its parent and that nobody else can stop by accident."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog

REFUSED = 78  # could not start, and has said why: starting it again would not help
CRASHED = 70
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DUMP_SIGNAL = signal.SIGUSR1
PR_SET_PDEATHSIG = 1  # prctl(2)
ORPHAN_POLL_S = 0.5

log = structlog.get_logger(__name__)


class Child:
    """Runs `body` in a fork of this process, which must have one thread.

    The fork ignores SIGTERM and SIGINT: a process manager signals the whole group, and the parent
    alone decides what that means. DUMP_SIGNAL makes it write all its stacks to stderr, even while
    it holds the GIL.
    """

    def __init__(self, body: Callable[[], int]) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent_pid = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # heard by one of the two
        self.pid = os.fork()
        if self.pid == 0:
            _live(body, parent_pid, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal's number; None while it lives."""
        if self._exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def send(self, number: int) -> None:
        if self.poll() is None:  # else the pid may be somebody else's by now
            os.kill(self.pid, number)


def _live(body: Callable[[], int], parent_pid: int, mask: set[int]) -> NoReturn:
    exit_code = CRASHED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _end_with(parent_pid)
        _show_as(f"chairlift worker of parent {parent_pid}")
        faulthandler.enable()
        faulthandler.register(DUMP_SIGNAL, all_threads=True)
        exit_code = body()
    except BaseException:
        log.exception("the worker failed")
    finally:  # never back into the parent's program
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(exit_code)


def _end_with(parent_pid: int) -> None:
    """SIGKILL for us when the parent is gone, however it went."""
    if not _kernel_ends_with_parent():
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it went before the kernel knew
        os._exit(CRASHED)


def _show_as(title: str) -> None:
    """What `ps` tells, where the system lets us: the title is written over our arguments."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(title.encode()[: end - start - 1].ljust(end - start, b"\0"))
        Path("/proc/self/comm").write_text("chairlift-child")  # 15 characters at most


def _kernel_ends_with_parent() -> bool:
    if sys.platform != "linux":
        return False
    status: int = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return status == 0


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(ORPHAN_POLL_S)
    os._exit(CRASHED)
