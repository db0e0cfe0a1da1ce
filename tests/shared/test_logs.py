"""The log: one line an event, on stderr, in the format that was asked for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from chairlift.shared.logs import LIBRARY_LOGGERS, configure_logs, short_hash


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Leaves the process' logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    libraries = [logging.getLogger(name) for name in LIBRARY_LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in libraries]
    yield
    root.handlers, root.level = handlers, level
    for logger, state in zip(libraries, before, strict=True):
        logger.handlers, logger.propagate, logger.level = state
    structlog.reset_defaults()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """In JSON every line is an object, the libraries' lines and tracebacks too."""
    configure_logs("json", "info")
    structlog.get_logger().info("hello", request="abc")
    logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("failed")
    output = capsys.readouterr()
    assert output.out == ""
    ours, theirs, failed = map(json.loads, output.err.splitlines())
    assert (ours["event"], ours["request"], ours["level"]) == ("hello", "abc", "info")
    assert (theirs["event"], theirs["logger"]) == ("from uvicorn", "uvicorn.error")
    assert "ValueError: boom" in failed["exception"]


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    """For people: no colours into a pipe, nothing below the level, libraries only if it matters."""
    configure_logs("console", "info")
    structlog.get_logger().debug("hidden")
    structlog.get_logger().info("hello", number=3)
    logging.getLogger("uvicorn.error").info("chatter")
    logging.getLogger("uvicorn.error").error("trouble")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "\x1b" not in "".join(lines)
    assert "hello" in lines[0] and "number=3" in lines[0] and "trouble" in lines[1]


def test_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """At debug everybody may speak."""
    configure_logs("console", "debug")
    logging.getLogger("uvicorn.error").info("chatter")
    assert "chatter" in capsys.readouterr().err


def test_short_hash() -> None:
    """A request is named by a hash, since its id is the key to its stream."""
    assert short_hash(b"x" * 16) == hashlib.sha256(b"x" * 16).hexdigest()[:8]
