"""The app on a loopback port in a thread of its own, for tests that speak raw bytes."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog
import uvicorn

from chairlift.frontend.api import create_app
from chairlift.frontend.api.http_protocol import MAX_HEADER_BYTES, timed_protocol
from chairlift.frontend.client import AsyncClient
from chairlift.shared.settings import ServeSettings
from tests.frontend.fake_client import FakeClient

TIMEOUT_S = 20.0


@contextmanager
def loopback(settings: ServeSettings) -> Iterator[int]:
    """The port."""
    config = uvicorn.Config(
        create_app(cast(AsyncClient, FakeClient()), settings),
        loop="uvloop",
        log_config=None,
        ws="none",
        http=timed_protocol(settings.header_timeout_s),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=0,
        backlog=1024,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with structlog.testing.capture_logs():
            yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)
        listener.close()
        assert not thread.is_alive()


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 when the connection was cut without a word."""

    status: int
    body: bytes

    @property
    def is_error_told(self) -> bool:
        """In the one shape that all errors have."""
        try:
            error: Any = json.loads(self.body)["error"]
        except (ValueError, LookupError, TypeError):
            return False
        return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def exchange(port: int, *pieces: bytes) -> Answer:
    """Sends all and reads one answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # it was refused before all had come: the answer may be there
        return answer_of(connection)


def answer_of(connection: socket.socket) -> Answer:
    """The first one that comes."""
    received = b""
    while not (answer := _parsed(received)):
        try:
            piece = connection.recv(1 << 16)
        except ConnectionError:  # the other side had more to say than we read
            piece = b""
        if not piece:
            return answer or Answer(0, b"")
        received += piece
    return answer


def _parsed(received: bytes) -> Answer | None:
    """Every answer here says its length."""
    head, end, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        return _parsed(body)
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if not end or not status or not length or len(body) < int(length[1]):
        return None
    return Answer(int(status[1]), body[: int(length[1])])


def post(path: str, body: bytes, *headers: str) -> bytes:
    """One request, to be the last on its connection."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def is_serving(port: int) -> bool:
    """Whether an ordinary request still gets its ordinary answer."""
    answer = exchange(port, post("/v1/completions", b'{"prompt": "a"}'))
    return answer.status == 200 and json.loads(answer.body)["choices"][0]["text"] == " 0 1 2 3 4"
