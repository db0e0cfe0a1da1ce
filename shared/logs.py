"""One log for a process: structlog, with the standard library's loggers routed through it."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

from .steps import request_hash

LIBRARY_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


def configure_logs(format: Literal["console", "json"], level: str) -> None:
    """Sends everything from `level` up to stderr; colours only on a terminal.

    Libraries speak from warning up, or with us at debug. A log that nobody reads stops nobody.
    """
    output = _never_blocking(sys.stderr, format)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=format == "json"),
        structlog.processors.StackInfoRenderer(),
    ]
    ending = _renderers(format)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[strip, *ending],
        )
    )
    _route_library_logs(handler, number)


class HostLog:
    """What a part says that also lives in other people's programs: to structlog where that is
    configured, as our commands do it, else to the standard library's logger of that name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._plain = structlog.wrap_logger(
            logging.getLogger(name),
            processors=[structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def __getattr__(self, level: str) -> Any:
        is_configured = structlog.is_configured()
        return getattr(structlog.get_logger(self._name) if is_configured else self._plain, level)


class LossyStream(io.TextIOBase):
    """Writes to a file descriptor as long as there is room, and loses the rest.

    It has neither a thread nor a buffer, so a fork and a sudden end cost nothing, and it leaves
    the descriptor's flags alone, which other processes share.
    """

    def __init__(self, fd: int, loss_notice: Callable[[int], str]) -> None:
        """`loss_notice` words how many lines were lost, once there is room again."""
        super().__init__()
        self._fd = fd
        self._loss_notice = loss_notice
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self._lock = threading.Lock()
        self._num_lost = 0
        self._is_cut = False  # the last line, somewhere in its midst

    def write(self, text: str) -> int:
        """All of it as far as the caller can tell: nobody could help it."""
        with self._lock:
            if self._num_lost and self._put(self._loss_notice(self._num_lost) + "\n"):
                self._num_lost = 0
            if self._num_lost or not self._put(text):
                self._num_lost += 1
        return len(text)

    def _put(self, text: str) -> bool:
        """Whether it is out. A descriptor with room takes PIPE_BUF bytes without blocking."""
        data = ("\n" * self._is_cut + text).encode(errors="backslashreplace")
        while data:
            try:
                num_written = os.write(self._fd, data[: select.PIPE_BUF]) if self._has_room else 0
            except OSError:  # the reader is gone, the disk full
                num_written = 0
            if not num_written:
                return False
            data = data[num_written:]
            self._is_cut = bool(data)
        return True

    @property
    def _has_room(self) -> bool:
        return bool(self._room.poll(0))


def short_hash(request_id: bytes) -> str:
    """8 hex digits to follow a request by: the id itself is the key to its stream."""
    return request_hash(request_id).hex()


def _never_blocking(stream: TextIO, format: Literal["console", "json"]) -> Any:
    """The stream itself when it is no file, as under a test."""

    def notice(num_lost: int) -> str:
        event = f"{num_lost} log lines are lost: there was no room for them"
        return json.dumps({"event": event, "level": "warning"}) if format == "json" else event

    try:
        return LossyStream(stream.fileno(), notice)
    except OSError:
        return stream


def _renderers(format: Literal["console", "json"]) -> list[Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _route_library_logs(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
    for name in LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
