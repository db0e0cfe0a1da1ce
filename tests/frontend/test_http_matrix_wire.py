"""What is wrong below the JSON: bytes that are no HTTP, too many of them, or none."""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from chairlift.shared.settings import ServeSettings
from tests.frontend.loopback import TIMEOUT_S, answer_of, exchange, is_serving, loopback, post

PATH = "/v1/completions"
BODY = b'{"prompt": "a"}'
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CHUNKED = (
    f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
).encode()
ELSEWHERE = CHUNKED.replace(PATH.encode(), b"/nowhere")
MIB = 1 << 20


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One server for all of it."""
    address = f"ipc://{tmp_path_factory.mktemp('a')}"
    with loopback(
        ServeSettings(address=address, header_timeout_s=0.4, body_timeout_s=0.4)
    ) as number:
        yield number


HTTP = {
    "nothing": b"",
    "a line": b"hello\r\n\r\n",
    "zeros": b"\0" * 1000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50,
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "a long target": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long method": b"G" * 200_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": GET + b"X: " + b"a" * 65536 + b"\r\n\r\n",
    "a longer header": GET + b"X: " + b"a" * MIB + b"\r\n\r\n",
    "many headers": GET + b"X: y\r\n" * 20_000 + b"\r\n",
    "no colon": GET + b"X\r\n\r\n",
    "a zero in a header": GET + b"X: a\0b\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "letters in a header": GET + "X: \u00fc\u4e0a\r\n\r\n".encode(),
    "spaces before the colon": GET + b"X : a\r\n\r\n",
    "a bare line feed": b"GET /health HTTP/1.1\nHost: x\n\n",
    "an absolute target": b"GET http://elsewhere/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "dots": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "an encoded zero": b"GET /v1/models/%00%ff%c0%af HTTP/1.1\r\nHost: x\r\n\r\n",
    "a stream of zeros": b"GET /v1/streams/%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    "slashes": b"GET //////health HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method of its own": b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "an upgrade to HTTP/2": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "two lengths": GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": GET + b"Content-Length: -1\r\n\r\n",
    "a signed length": GET + b"Content-Length: +5\r\n\r\nhello",
    "a long length": GET + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "no number": GET + b"Content-Length: ten\r\n\r\n",
    "length and chunks": CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "an unknown coding": CHUNKED.replace(b"chunked", b"gzip") + BODY,
    "a doubled coding": CHUNKED.replace(b"chunked", b"chunked, chunked") + b"0\r\n\r\n",
    "a compressed body": post(PATH, b"\x1f\x8b\x08", "Content-Encoding: gzip"),
    "a body cut off": post(PATH, BODY)[:-3],
    "chunks of no size": CHUNKED + b"\r\n\r\n",
    "chunks sized by letters": CHUNKED + b"zz\r\nab\r\n0\r\n\r\n",
    "chunks of less than nothing": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "chunks larger than the world": CHUNKED + b"f" * 20 + b"\r\nhello",
    "chunks larger than they say": CHUNKED + b"1\r\nhello\r\n0\r\n\r\n",
    "chunks smaller than they say": CHUNKED + b"ff\r\nhello\r\n0\r\n\r\n",
    "chunks with long extensions": CHUNKED + b"1;" + b"x" * 200_000 + b"\r\n{\r\n0\r\n\r\n",
    "chunks with long trailers": CHUNKED + b"1\r\n{\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "chunks that never end": CHUNKED + b"1\r\n{\r\n" * 1000,
    "bad chunks after the answer": ELSEWHERE + b"5\r\nhello\r\nzz\r\n",
    "a body that nobody wants": ELSEWHERE + b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n",
    "two requests and a half": post(PATH, BODY).replace(b"close", b"keep-alive") * 2 + b"GET /hea",
    "garbage after a request": post(PATH, BODY).replace(b"close", b"keep-alive") + b"\0" * 99,
    "a body that waits": post(PATH, BODY, "Expect: 100-continue"),
    "a body that waits for too much": post(PATH, b"", "Expect: everything"),
}


@pytest.mark.parametrize("sent", HTTP.values(), ids=HTTP.keys())
def test_bytes(port: int, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes is answered, refused in the API's own shape or cut off; nothing breaks."""
    answer = exchange(port, sent)
    assert answer.status < 500
    assert answer.status < 400 or answer.is_error_told, answer
    assert is_serving(port)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_headers_have_a_limit(port: int) -> None:
    """However they arrive: all at once, or piece by piece."""
    head, piece = GET + b"X: ", b"a" * 1024
    assert exchange(port, head + b"a" * 65536 + b"\r\n\r\n").status == 431
    assert exchange(port, head, *[piece] * 64, b"\r\n\r\n").status == 431
    assert exchange(port, head + b"a" * 12_000 + b"\r\nConnection: close\r\n\r\n").status == 200


def test_large_bodies(port: int) -> None:
    """A hundred megabytes are refused at once when announced, else at the limit, and not held."""
    piece = b" " * MIB
    before = peak_mib()
    announced = post(PATH, b"").replace(b"Content-Length: 0", b"Content-Length: 104857600")
    chunk = b"100000\r\n" + piece + b"\r\n"
    for pieces in ((announced, *[piece] * 100), (CHUNKED, *[chunk] * 100, b"0\r\n\r\n")):
        answer = exchange(port, *pieces)
        assert answer.status in (0, 413), answer  # 0: cut while we went on sending
        assert answer.status == 0 or answer.is_error_told
    assert exchange(port, announced).status == 413
    assert exchange(port, CHUNKED, *[chunk] * 5).status in (0, 413)
    assert is_serving(port)
    assert peak_mib() - before < 50


def test_slowloris(port: int) -> None:
    """Two hundred that send a byte and stall, in any state of a request, are cut off in time, and
    others are served."""
    beginnings = (b"G", GET, GET + b"X: ", GET + b"\r\n" + b"G", b"\r\n")
    with ExitStack() as open_connections:
        stalled = []
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
            stalled.append(open_connections.enter_context(connection))
            connection.sendall(beginnings[number % len(beginnings)])
        assert is_serving(port)
        for connection in stalled:
            answer_of(connection)  # returns when the server has closed it
    assert is_serving(port)


def test_a_drip_is_no_request(port: int) -> None:
    """A header every now and then does not win time."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(GET)
        deadline = time.monotonic() + TIMEOUT_S
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                time.sleep(0.1)
                connection.sendall(b"X: y\r\n")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
