"""The log: one line an event, on stderr, in the format that was asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import threading
from collections.abc import Iterator

import pytest
import structlog

from chairlift.shared.logs import LIBRARY_LOGGERS, HostLog, LossyStream, configure_logs, short_hash


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


class TestUnreadPipe:
    """A log into a pipe whose other end nobody reads."""

    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int]]:
        reader, writer = os.pipe()
        yield reader, writer
        os.close(writer)
        if reader in self.open:
            os.close(reader)

    @pytest.fixture(autouse=True)
    def keep_open(self, pipe: tuple[int, int]) -> None:
        self.open = {pipe[0]}

    def read_all(self, reader: int) -> str:
        text = b""
        while select.select([reader], [], [], 0)[0]:
            text += os.read(reader, 1 << 16)
        return text.decode()

    def stream(self, writer: int) -> LossyStream:
        return LossyStream(writer, lambda num_lost: f"{num_lost} lost")

    def test_a_line(self, pipe: tuple[int, int]) -> None:
        """Goes out as it is, whatever letters it has."""
        self.stream(pipe[1]).write("lift \u4e0a \ud800\n")
        assert self.read_all(pipe[0]) == "lift \u4e0a \\ud800\n"

    def test_full(self, pipe: tuple[int, int]) -> None:
        """Lines are lost instead of waited for, and counted once there is room again."""
        stream = self.stream(pipe[1])
        for number in range(3000):
            stream.write(f"{number} {'x' * 100}\n")
        lines = self.read_all(pipe[0]).splitlines()
        assert 300 < len(lines) < 1000
        stream.write("again\n")
        stream.write("and again\n")
        assert self.read_all(pipe[0]).splitlines() == [
            f"{3000 - len(lines)} lost",
            "again",
            "and again",
        ]

    def test_cut(self, pipe: tuple[int, int]) -> None:
        """A line that breaks off for want of room does not swallow the next one."""
        stream = self.stream(pipe[1])
        stream.write("x" * 1_000_000 + "\n")
        kept = self.read_all(pipe[0])
        assert len(kept) < 100_000 and not kept.endswith("\n")
        stream.write("again\n")
        assert self.read_all(pipe[0]) == "\n1 lost\nagain\n"

    def test_long_lines(self, pipe: tuple[int, int]) -> None:
        """A traceback longer than what a pipe takes at once is whole when it is read."""
        self.stream(pipe[1]).write("x" * 20_000 + "\n")
        assert self.read_all(pipe[0]) == "x" * 20_000 + "\n"

    def test_reader_gone(self, pipe: tuple[int, int]) -> None:
        """Nothing is raised, nobody is killed."""
        os.close(pipe[0])
        self.open.clear()
        for _ in range(3):
            self.stream(pipe[1]).write("hello\n")

    def test_threads(self, pipe: tuple[int, int]) -> None:
        """Lines of several threads stay lines."""
        stream = self.stream(pipe[1])

        def write(letter: str) -> None:
            for _ in range(50):
                stream.write(letter * 200 + "\n")

        threads = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = self.read_all(pipe[0]).splitlines()
        assert len(lines) == 150 and {len(line) for line in lines} == {200}


def test_full_disk() -> None:
    """A disk without room loses the log alone."""
    with open("/dev/full", "wb") as full:
        LossyStream(full.fileno(), str).write("hello\n")


def test_a_part_of_a_program_logs_where_that_does(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the standard library's logger of its name, unless structlog is configured."""
    log = HostLog("chairlift.test")
    structlog.reset_defaults()
    with caplog.at_level("WARNING", logger="chairlift.test"):
        log.warning("dropped", why="malformed")
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("chairlift.test", "dropped")
    assert record.__dict__["why"] == "malformed"
    caplog.clear()
    with structlog.testing.capture_logs() as captured:
        structlog.configure(processors=structlog.get_config()["processors"])
        log.warning("dropped again")
    structlog.reset_defaults()
    assert [entry["event"] for entry in captured] == ["dropped again"]
    assert not caplog.records
    assert capfd.readouterr().out == ""
