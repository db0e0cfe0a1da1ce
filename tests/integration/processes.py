"""Real `chairlift` processes for tests, always ended by their own id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_TIMEOUT_S = 10.0


@contextmanager
def chairlift(
    command: str, *, log: Path | None = None, **settings: object
) -> Iterator[subprocess.Popen[bytes]]:
    """`chairlift COMMAND` with settings as environment variables; terminated on leaving.

    What it wrote is printed when the test fails.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CHAIRLIFT_")}
    environment |= {f"CHAIRLIFT_{name.upper()}": str(value) for name, value in settings.items()}
    environment["OMP_NUM_THREADS"] = "1"
    with log.open("ab") if log else open(os.devnull, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "chairlift", command],
            env=environment,
            stderr=output if log else None,
            cwd="/",  # away from any .env
        )
        try:
            yield process
        finally:
            stop(process)


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
