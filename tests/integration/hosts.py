"""Other people's servers: in a thread, or as a process of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tests.integration.processes import READY_TIMEOUT_S
from tests.tcp import free_port

ROOT = Path(__file__).parents[2]  # to be found from any folder
STOP_TIMEOUT_S = 60.0  # three interpreters with a framework each take seconds on a busy machine


@contextmanager
def in_thread(app: Any) -> Iterator[str]:
    """An ASGI application under plain uvicorn, in an event loop of its own; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STOP_TIMEOUT_S)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def as_process(command: Sequence[str], address: str, folder: Path, log: Path) -> Iterator[str]:
    """A server started in `folder` as `python -m COMMAND`, with PORT in it filled in; its URL."""
    port = free_port()
    filled = [word.replace("PORT", str(port)) for word in command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *filled],
            env=environment(address),
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _until_open(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


def environment(address: str) -> dict[str, str]:
    """Ours, less the settings of whoever runs the tests."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("CHAIRLIFT_")}
    return {**ours, "CHAIRLIFT_ADDRESS": address, "PYTHONPATH": str(ROOT)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own, workers included
        process.wait()
        raise


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nobody listens:\n{log.read_text()}")
