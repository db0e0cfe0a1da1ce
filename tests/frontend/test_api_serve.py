"""The server as a process: it starts without a worker and ends in order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

TIMEOUT_S = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(address: str, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "chairlift", "serve", f"--address={address}", f"--port={port}"]
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
