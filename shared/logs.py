"""One log for a process: structlog, with the standard library's loggers routed through it."""

from __future__ import annotations

import hashlib
import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

LIBRARY_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


def configure_logs(format: Literal["console", "json"], level: str) -> None:
    """Sends everything from `level` up to stderr; colours only on a terminal.

    Libraries speak from warning up, or with us at debug.
    """
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
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[strip, *ending],
        )
    )
    _route_library_logs(handler, number)


def short_hash(request_id: bytes) -> str:
    """8 hex digits to follow a request by: the id itself is the key to its stream."""
    return hashlib.sha256(request_id).hexdigest()[:8]


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
