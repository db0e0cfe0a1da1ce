"""The server as a process: it starts without a worker, stands trouble, ends in order."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chairlift.frontend.api import create_app
from chairlift.frontend.api.serve import SAME_SIGNAL_S, Server, StopWish
from chairlift.shared.settings import ServeSettings
from tests.tcp import free_port

TIMEOUT_S = 30
COMPLETIONS = "/v1/completions"
JSON_POST = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextmanager
def serve(address: str, port: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "chairlift", "serve", f"--address={address}", f"--port={port}"]
    command += flags
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CHAIRLIFT_")}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd="/"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    return process.stderr.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_a_worker(address: str, number: signal.Signals) -> None:
    """It listens before there is a worker, says so, and a signal ends it with code 0 in time."""
    port = free_port()
    with serve(address, port) as process:
        assert f"listening at http://127.0.0.1:{port}, waiting" in first_line(process)
        health = httpx2.get(f"http://127.0.0.1:{port}/health")
        assert (health.status_code, health.json()) == (503, {"status": "starting"})
        answer = httpx2.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == 0
        assert time.monotonic() - start < 4


def test_taken_port(address: str) -> None:
    """A port that is taken ends the start with one clear line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(address, port) as process:
            assert process.wait(TIMEOUT_S) == 1
            assert process.stderr
            lines = process.stderr.read().splitlines()
    assert len(lines) == 1 and f"port {port}" in lines[0] and "--port" in lines[0]


def test_ends_now_at_the_second_signal(address: str) -> None:
    """Nobody has to wait for a drain that was wished for too long; the code still is 0."""
    port = free_port()
    with serve(address, port, "--drain-delay-s=600") as process:
        first_line(process)
        process.send_signal(signal.SIGTERM)
        while httpx2.get(f"http://127.0.0.1:{port}/health").json() != {"status": "draining"}:
            time.sleep(0.05)
        answer = httpx2.post(f"http://127.0.0.1:{port}{COMPLETIONS}", json={"prompt": "a"})
        assert answer.json()["error"]["code"] == "worker_unavailable"  # taken, and answered
        time.sleep(2 * SAME_SIGNAL_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_the_defaults_end_within_honchos_patience() -> None:
    """honcho kills after five seconds."""
    settings = ServeSettings()
    assert settings.drain_delay_s + settings.drain_timeout_s <= 3.5


def test_a_log_that_nobody_reads(address: str) -> None:
    """A full pipe stops no request; what is lost is counted when somebody reads again."""
    port = free_port()
    with serve(address, port) as process, httpx2.Client() as http:
        assert process.stderr
        wait_until_listening(port)
        for _ in range(700):  # of more than 100 bytes each; the pipe holds 65,536
            assert http.get(f"http://127.0.0.1:{port}/v1/models").status_code == 503
        log = b""
        while select.select([process.stderr], [], [], 0.2)[0]:
            log += os.read(process.stderr.fileno(), 1 << 16)
        http.get(f"http://127.0.0.1:{port}/v1/models")
        process.send_signal(signal.SIGTERM)
        assert "log lines are lost" in log.decode() + process.stderr.read()
        assert process.wait(TIMEOUT_S) == 0


def test_more_connections_than_descriptors(address: str) -> None:
    """Those that are too many are cut off, without a spin or a flood; others come in again when
    the idle ones have been closed."""
    port = free_port()
    with serve(address, port, "--header-timeout-s=2") as process, ExitStack() as connections:
        assert process.stderr
        first_line(process)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(200):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"G")
        before = cpu_seconds(process.pid)
        time.sleep(1)
        assert cpu_seconds(process.pid) - before < 0.5
        assert process.poll() is None
        wait_until_listening(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert len(process.stderr.read()) < 10_000


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 503:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("nobody answers")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_wish_heard_twice_is_one() -> None:
    """Two signals at once are one wish, a later one is urgent; the end is due after the delay."""
    now = 5.0
    wish = StopWish(delay_s=10.0, clock=lambda: now)
    assert not wish.is_there and not wish.is_due
    wish.heard()
    wish.heard()
    assert wish.is_there and not wish.is_due and not wish.is_urgent
    now = 15.0
    assert wish.is_due and not wish.is_urgent
    now = 6.0
    wish.heard()
    assert wish.is_due and wish.is_urgent


class TestDrain:
    """The server over a client without a worker."""

    @asynccontextmanager
    async def running(self, fake: Any, **seconds: float) -> AsyncIterator[tuple[Server, str]]:
        settings = ServeSettings(**seconds)  # type: ignore[arg-type]  # only seconds
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def announce() -> None:
            pass

        server = Server(create_app(fake, settings), settings, announce)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(20):
                yield server, url
                server.handle_exit(signal.SIGTERM, None)
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @pytest.mark.anyio
    async def test_told_first(self, fake: Any) -> None:
        """/health says so while requests are still taken."""
        async with (
            self.running(fake, drain_delay_s=0.5) as (server, url),
            httpx2.AsyncClient(base_url=url) as http,
        ):
            assert (await http.get("/health")).status_code == 200
            server.handle_exit(signal.SIGTERM, None)
            while (health := await http.get("/health")).status_code == 200:
                pass
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            assert (await http.post(COMPLETIONS, json={"prompt": "a"})).status_code == 200

    @pytest.mark.anyio
    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_runs_may_finish(self, fake: Any, stream: bool) -> None:
        """No one comes in any more, and who is in gets all of the answer."""
        fake.gate = asyncio.Semaphore(0)
        async with (
            self.running(fake, drain_timeout_s=15) as (server, url),
            httpx2.AsyncClient(base_url=url) as http,
        ):
            body = {"prompt": "a", "stream": stream}
            asking = asyncio.create_task(http.post(COMPLETIONS, json=body))
            await fake.generating.wait()
            server.handle_exit(signal.SIGTERM, None)
            with pytest.raises(httpx2.TransportError):
                while True:
                    async with httpx2.AsyncClient(base_url=url) as other:
                        await other.get("/health")
            for _ in range(5):
                fake.gate.release()
            answer = await asking
        assert answer.status_code == 200 and " 4" in answer.text
        assert not fake.streams[0].is_cancelled

    @pytest.mark.anyio
    @pytest.mark.parametrize("is_urgent", [False, True])
    async def test_what_does_not_finish(self, fake: Any, is_urgent: bool) -> None:
        """At the limit, or at the second signal, the rest get a last word; a reader that takes
        nothing keeps nobody."""
        fake.gate = asyncio.Semaphore(0)
        seconds = {"drain_timeout_s": 600.0 if is_urgent else 0.2}
        body = {"prompt": "a", "stream": True}
        async with (
            self.running(fake, **seconds) as (server, url),
            httpx2.AsyncClient(base_url=url) as http,
        ):
            with stalled_reader(url, fake):
                asking = asyncio.create_task(http.post(COMPLETIONS, json=body))
                while len(fake.streams) < 2:
                    await asyncio.sleep(0.01)
                server.handle_exit(signal.SIGTERM, None)
                if is_urgent:
                    await asyncio.sleep(2 * SAME_SIGNAL_S)
                    server.handle_exit(signal.SIGTERM, None)
                answer = await asking
                if is_urgent:
                    while server.server_state.connections:
                        await asyncio.sleep(0.01)
        assert answer.status_code == 200 and '"code":"shutting_down"' in answer.text


def stalled_reader(url: str, fake: Any) -> socket.socket:
    """Asks for a stream larger than any buffer and reads nothing of it."""
    from chairlift.frontend.results import Delta

    usual = fake.script
    large = [Delta([1], "x" * 20_000_000), Delta([2], "y")]
    fake.script = lambda *args: usual(*args) if fake.streams else large
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    reader = socket.create_connection((host, int(port)))
    reader.sendall(JSON_POST.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return reader
