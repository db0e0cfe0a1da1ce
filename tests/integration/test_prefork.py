"""Clients in processes that fork: gunicorn with the application loaded first, and bare forks."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

import chairlift
from chairlift.shared.errors import ClientClosedError
from tests.integration.hosts import as_process, environment

pytestmark = [pytest.mark.usefixtures("worker_of_long_answers"), pytest.mark.slow]
NUM_WORKERS = 3
WAIT_S = 20.0
GUNICORN = ("gunicorn", "--preload", "--workers", f"{NUM_WORKERS}", "--threads", "4")
LISTENING = ("--bind", "127.0.0.1:PORT", "--no-control-socket")
COMMAND = (*GUNICORN, *LISTENING, "prefork_app:app")
HERE = Path(__file__).parent
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def test_gunicorn_with_a_client_from_before_the_fork(worker_address: str, tmp_path: Path) -> None:
    """A client that the master made and did not use serves in every worker; one that it used says
    there that it is the master's. All end without a complaint."""
    log = tmp_path / "log"
    with as_process(COMMAND, worker_address, HERE, log) as url:
        answers, workers = set(), set()
        deadline = time.monotonic() + WAIT_S
        while len(workers) < NUM_WORKERS:
            assert time.monotonic() < deadline, workers
            pid, master, answer = httpx2.get(f"{url}/unused").text.split(" ", 2)
            assert pid != master
            workers.add(pid)
            answers.add(answer)
            failure = httpx2.get(f"{url}/used").text
            assert failure.startswith("ClientClosedError: the client belongs to another process")
        assert len(answers) == 1
    assert not re.search("Traceback|Exception|Warning", log.read_text()), log.read_text()


def test_gunicorn_cancels_for_callers_who_go(worker_address: str, tmp_path: Path) -> None:
    """A stream that a WSGI server closes, because its caller hung up, ends at the worker long
    before it would have."""
    with (
        as_process(COMMAND, worker_address, HERE, tmp_path / "log") as url,
        chairlift.Client(worker_address) as watcher,
    ):
        watcher.connect()
        with httpx2.stream("GET", f"{url}/stream") as answer:
            assert next(answer.iter_lines()).startswith("data: ")
            num_before = watcher._client.stats.num_generation_tokens
        deadline = time.monotonic() + WAIT_S
        while (stats := watcher._client.stats).num_running or stats.num_free_blocks < (
            stats.num_blocks
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert stats.num_generation_tokens - num_before < 6000


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a fork that does it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_amid_a_stream(worker_address: str) -> None:
    """A child of a process in the midst of a stream can neither use nor hurt its parent's client,
    not even by closing it; one of its own works, and so does one that the parent did not use."""

    async def run() -> None:
        fresh = chairlift.AsyncClient(worker_address)
        async with chairlift.AsyncClient(worker_address, connect_timeout_s=60) as client:
            whole = await client.complete("abc", max_tokens=400, **GREEDY)
            stream = client.stream("abc", max_tokens=400, **GREEDY)
            text = (await anext(stream)).text

            async def misuse() -> None:
                with pytest.raises(ClientClosedError, match="another process"):
                    await client.complete("abc", max_tokens=2)
                await client.close()
                async with fresh, chairlift.AsyncClient(worker_address) as own:
                    for one in (fresh, own):
                        answer = await one.complete("abc", max_tokens=400, **GREEDY)
                        assert answer.token_ids == whole.token_ids

            assert in_child(lambda: asyncio.run(misuse())) == 0
            async for delta in stream:
                text += delta.text
            assert text == whole.text

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_amid_a_blocking_stream(worker_address: str) -> None:
    """The same of a Client, whose lock and thread a fork may leave in any state."""
    with chairlift.Client(worker_address, connect_timeout_s=60) as client:
        whole = client.complete("abc", max_tokens=400, **GREEDY)
        stream = client.stream("abc", max_tokens=400, **GREEDY)
        text = next(stream).text

        def misuse() -> None:
            with pytest.raises(ClientClosedError, match="another process"):
                next(stream)
            client.close()

        client._lock.acquire()  # as a thread that was amid a call would have left it
        try:
            assert in_child(misuse) == 0
        finally:
            client._lock.release()
        assert text + "".join(delta.text for delta in stream) == whole.text


LEFT_OPEN = """
import asyncio, chairlift

blocking = chairlift.Client()
blocking.complete("abc", max_tokens=2)
stream = blocking.stream("abc", ignore_eos=True)
next(stream)

async def main():
    global client, left
    client = chairlift.AsyncClient()
    await client.complete("abc", max_tokens=2)
    left = client.stream("abc", ignore_eos=True)
    await anext(left)
    chairlift.asgi_app(client)

asyncio.run(main())
print("done")
"""


def test_a_program_may_end_without_closing(worker_address: str) -> None:
    """A process that leaves its clients and streams open ends at once, and in silence."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN],
        env=environment(worker_address),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
