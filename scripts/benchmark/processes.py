"""The processes that are measured. Whatever happens, none is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chairlift.worker.process import TUNING, tune

from .errors import BenchmarkError
from .figures import Run
from .job import Job

PROGRAM = ("-m", "chairlift")
STOP_S = 10.0
FAMILY_STOP_S = 20.0
POLL_S = 0.1
LOG_TAIL_BYTES = 3000


def measure_in_process(program: str, job: Job, environment: Mapping[str, str] | None = None) -> Run:
    """By this module of the package, in a process of its own; raises BenchmarkError when it fails
    or takes too long."""
    job.requests()  # refuses here what it would refuse there
    with tempfile.TemporaryDirectory(prefix="chairlift-bench-") as name:
        job_file, result_file, log = (Path(name) / n for n in ("job.json", "run.json", "log"))
        job_file.write_bytes(msgspec.json.encode(job))
        command = ["-m", f"{__package__}.{program}", str(job_file), str(result_file)]
        with running(command, log, environment) as process:
            try:
                status = process.wait(job.timeout_s)
            except subprocess.TimeoutExpired:
                raise BenchmarkError(
                    f"not done after {job.timeout_s:g} s: raise --timeout or lower --limit"
                ) from None
        if status:
            raise _failure("the measurement failed", [log])
        return msgspec.json.decode(result_file.read_bytes(), type=Run)


@dataclass(frozen=True, slots=True)
class Servers:
    """A worker and a frontend that answer."""

    port: int
    supervisor_pid: int
    worker_pid: int
    frontend_pid: int

    @property
    def pids(self) -> list[int]:
        return [self.supervisor_pid, self.worker_pid, self.frontend_pid]


@contextmanager
def servers(job: Job, worker_program: Sequence[str] = PROGRAM) -> Iterator[Servers]:
    """Starts both, waits until /ready is fine, and stops both when the block is left. Another
    program has to be a `chairlift` to its further arguments."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="chairlift-bench-"))
        logs = {command: Path(name) / f"{command}.log" for command in ("worker", "serve")}
        port, address = free_port(), f"ipc://{name}/sockets"
        worker_flags = flags({**job.settings(), "address": address})
        serve_flags = flags({"address": address, "port": port})
        worker = stack.enter_context(
            running([*worker_program, "worker", *worker_flags], logs["worker"])
        )
        frontend = stack.enter_context(running([*PROGRAM, "serve", *serve_flags], logs["serve"]))
        processes = {worker: logs["worker"], frontend: logs["serve"]}
        wait_until_healthy(port, processes, job.timeout_s, "/ready")  # /health is before a worker
        yield Servers(port, worker.pid, _child_of(worker.pid), frontend.pid)


def wait_until_healthy(
    port: int,
    logs: Mapping[subprocess.Popen[bytes], Path],
    timeout_s: float,
    path: str = "/health",
) -> None:
    """Raises BenchmarkError when one of the processes has ended, or they take too long."""
    deadline = time.monotonic() + timeout_s
    while not _is_fine(port, path):
        if any(process.poll() is not None for process in logs):
            raise _failure("the server can't start", logs.values())
        if time.monotonic() > deadline:
            raise _failure(f"the server is not ready after {timeout_s:g} s", logs.values())
        time.sleep(POLL_S)


def _failure(what: str, logs: Iterable[Path]) -> BenchmarkError:
    return BenchmarkError(f"{what}:\n{''.join(map(_tail, logs))}")


def _child_of(pid: int) -> int:
    """What `chairlift worker` watches: the process that does the work."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def fetch(port: int, path: str) -> str:
    """The body of a GET; raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=STOP_S) as response:
        body: bytes = response.read()
    return body.decode()


def _is_fine(port: int, path: str) -> bool:
    try:
        fetch(port, path)
    except OSError:  # refused, or a status of 503
        return False
    return True


@contextmanager
def running(
    arguments: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """This Python in the log's folder, away from any `.env`."""
    process = _start([sys.executable, *arguments], log, environment or _environment())
    try:
        yield process
    finally:
        _stop(process)


@contextmanager
def running_family(
    command: list[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's program, whose children may outlive it: they are stopped with it."""
    process = _start(command, log, environment, is_apart=True)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(FAMILY_STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(
    command: list[str], log: Path, environment: Mapping[str, str], is_apart: bool = False
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=is_apart,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except BaseException:  # late, or the user has lost patience
        process.kill()
        process.wait()
        raise


def _environment() -> dict[str, str]:
    """Ours, less what would change chairlift's settings, and with this package and this checkout
    to be found first, whichever chairlift is installed."""
    kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    tune(kept)
    scripts = Path(__file__).resolve().parent.parent
    folders = (str(scripts), str(scripts.parent), kept.get("PYTHONPATH", ""))
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def foreign_environment() -> dict[str, str]:
    """For an engine that isn't ours: how its threads wait and what its pages are is its own choice,
    and nothing is to be downloaded during a measurement."""
    kept = {name: value for name, value in _environment().items() if name not in TUNING}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _is_setting(name: str) -> bool:
    return name == "PORT" or name.upper().startswith("CHAIRLIFT_")


def flags(settings: Mapping[str, Any]) -> list[str]:
    return [_flag(name.replace("_", "-"), value) for name, value in settings.items()]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
