"""A worker, and frontends in processes of their own with many streams each, to be disturbed."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import chairlift
from chairlift.shared.errors import WorkerUnavailableError
from tests.integration.audit import Expected
from tests.integration.http_reader import answered
from tests.integration.processes import STOP_TIMEOUT_S, worker_child
from tests.integration.processes import chairlift as running
from tests.integration.reader import Spec
from tests.integration.workload import Record
from tests.tcp import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60.0
POLL_S = 0.01


async def until(condition: Callable[[], object], timeout_s: float = READY_TIMEOUT_S) -> None:
    """Raises TimeoutError when it does not come true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(POLL_S)


async def is_healthy(port: int) -> bool:
    try:
        async with answered(port, "GET", "/health") as answer:
            return answer.status == 200
    except OSError:
        return False


class ReaderProcess:
    """A frontend with streams, from its start until `finish`."""

    def __init__(self, spec: Spec, folder: Path, name: str) -> None:
        self._output = folder / f"{name}.jsonl"
        self.log = folder / f"{name}.log"
        with self._output.open("wb") as output, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.reader", msgspec.json.encode(spec)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=log,
            )
        self._patience_s = spec.patience_s

    @property
    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self._output.stat().st_size > 0

    async def finish(self) -> list[Record]:
        """Every stream that it ever had; those that still ran have finished, if they could."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = await asyncio.to_thread(self.process.wait, self._patience_s + STOP_TIMEOUT_S)
        assert status == 0, self.log.read_text()
        return self.records()

    def records(self) -> list[Record]:
        lines = self._output.read_bytes().splitlines()[1:]
        return [msgspec.json.decode(line, type=Record) for line in lines]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Server:
    """One `chairlift serve`."""

    process: subprocess.Popen[bytes]
    port: int


class Fleet:
    """One worker, its frontends, and a client that watches. Made by `fleet`."""

    def __init__(self, stack: ExitStack, watcher: chairlift.AsyncClient, folder: Path) -> None:
        self.watcher = watcher
        self.folder = folder
        self.readers: list[ReaderProcess] = []
        self._stack = stack

    def start_worker(self, model: Path, address: str, settings: dict[str, Any]) -> None:
        self.address = address
        values = {"max_num_seqs": 128, "dtype": "float32"}
        values |= {"kernels": "native"} | settings  # no bit depends on how it is cut
        log = self.folder / "worker.log"
        self.worker = self._stack.enter_context(
            running("worker", log=log, model=model, address=address, **values)
        )

    @property
    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text()

    @property
    def epoch(self) -> int:
        """Of the worker process that was heard last."""
        assert self.watcher.worker is not None
        return self.watcher.worker.epoch

    @property
    def is_idle(self) -> bool:
        """Nothing runs or waits, and every block is free; finished answers may be kept."""
        stats = self.watcher.stats
        is_free = stats.num_free_blocks == stats.num_blocks > 0
        return is_free and not stats.num_running + stats.num_waiting

    async def until_met(self) -> None:
        """The worker answers; what it wrote if it can't."""
        try:
            await self.watcher.connect()
        except WorkerUnavailableError as error:
            raise RuntimeError(self.worker_log) from error

    async def add_readers(self, *specs: Spec) -> None:
        """Returns when each has met the worker."""
        for spec in specs:
            reader = ReaderProcess(spec, self.folder, f"reader{len(self.readers)}")
            self._stack.callback(reader.close)
            self.readers.append(reader)
        await until(lambda: all(reader.is_ready for reader in self.readers))

    async def add_server(self, **settings: Any) -> Server:
        """Returns when it is healthy."""
        port = free_port()
        log = self.folder / f"serve{port}.log"
        values = {"log_level": "warning", "max_requests": 4096} | settings
        process = self._stack.enter_context(
            running("serve", log=log, address=self.address, port=port, **values)
        )
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await is_healthy(port):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(POLL_S)
        return Server(process, port)

    async def finish(self) -> list[Record]:
        """What every stream of every reader gave."""
        return [record for records in await self.finish_each() for record in records]

    async def finish_each(self) -> list[list[Record]]:
        """The same, by reader."""
        return await asyncio.gather(*(reader.finish() for reader in self.readers))

    def kill_worker(self) -> None:
        """kill -9 of the process that runs the model, not of its parent."""
        os.kill(worker_child(self.worker), signal.SIGKILL)

    async def until_restarted(self, former_epoch: int) -> None:
        await until(lambda: self.epoch != former_epoch)

    async def until_idle(self, timeout_s: float = 20.0) -> None:
        """For a while: stats are as old as the last heartbeat."""
        await asyncio.sleep(0.6)
        try:
            await until(lambda: self.is_idle, timeout_s)
        except TimeoutError:
            raise AssertionError(f"something is left: {self.watcher.stats}") from None


def specs(address: str, num_readers: int = 4, num_streams: int = 32, **fields: Any) -> list[Spec]:
    """Readers that begin at different places of the list of requests."""
    return [
        Spec(address, num_streams, first_request=16 * number + 1, **fields)
        for number in range(num_readers)
    ]


@contextmanager
def short_folder() -> Iterator[Path]:
    """Whose name leaves room for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="chairlift-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def fleet(
    model: Path, *, address: str | None = None, **settings: Any
) -> AsyncIterator[Fleet]:
    """A worker that is ready, and no readers yet; everything is gone on leaving.

    `settings` are the worker's; `program` is what to run instead of `-m chairlift`.
    """
    with short_folder() as folder, ExitStack() as stack:
        address = address or f"ipc://{folder / 'sockets'}"
        async with chairlift.AsyncClient(address, connect_timeout_s=READY_TIMEOUT_S) as watcher:
            made = Fleet(stack, watcher, folder)
            made.start_worker(model, address, settings)
            await made.until_met()
            yield made


@functools.cache
def expected_of(model: Path) -> Expected:
    """What every request gives when nothing is disturbed; measured once."""
    return asyncio.run(_reference(model))


async def _reference(model: Path) -> Expected:
    async with fleet(model) as quiet:
        await quiet.add_readers(Spec(quiet.address, num_streams=8, rounds=1))
        records = await quiet.finish()
    assert all(record.num_ends == 1 and record.token_ids for record in records)
    return {record.number: record for record in records}
