"""Real `chairlift` processes for tests, always ended by their own id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.gpu import DEVICE
from tests.tcp import free_port

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
FORK_TIMEOUT_S = 20.0
PROGRAM = ("-m", "chairlift")


@contextmanager
def chairlift(
    command: str,
    *,
    log: Path | None = None,
    program: Sequence[str] = PROGRAM,
    **settings: object,
) -> Iterator[subprocess.Popen[bytes]]:
    """`chairlift COMMAND` with settings as environment variables; terminated on leaving.

    What it wrote is printed when the test fails. It leads a process group of its own.
    """
    with log.open("ab") if log else open(os.devnull, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, *program, command],
            env=environment_of(settings),
            stderr=output if log else None,
            cwd="/",  # away from any .env
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """For one of our processes: ours, with these settings and no others but a worker's device."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CHAIRLIFT_")}
    settings = {"device": DEVICE, **settings}
    environment |= {f"CHAIRLIFT_{name.upper()}": str(value) for name, value in settings.items()}
    return environment | {"OMP_NUM_THREADS": "1"}


@contextmanager
def serving(worker_address: str, *, status: int = 200, **settings: Any) -> Iterator[str]:
    """A frontend's URL, once it can take requests, or its /health says another status."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with chairlift("serve", address=worker_address, port=port, **settings):
        until_health(url, status)
        yield url


def until_health(url: str, status: int) -> None:
    """A healthy frontend may still wait for the worker's tokenizer, and say 503 till then."""
    page = "ready" if status == 200 else "health"
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx2.Client() as http:
        while time.monotonic() < deadline:
            try:
                if http.get(f"{url}/{page}").status_code == status:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
    raise AssertionError(f"/{page} never said {status}")


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Its exit status."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def worker_child(parent: subprocess.Popen[bytes], *, other_than: int = 0) -> int:
    """The process id of the worker that `chairlift worker` watches; bounded."""
    deadline = time.monotonic() + FORK_TIMEOUT_S
    while time.monotonic() < deadline:
        for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
            if int(pid) != other_than:
                return int(pid)
        time.sleep(0.01)
    raise AssertionError("the parent has no child")
