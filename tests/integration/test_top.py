"""`chairlift top` beside a worker that runs, in a terminal and without one."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chairlift import AsyncClient
from chairlift.shared.errors import ChairliftError
from tests.integration.conftest import short_address
from tests.integration.processes import chairlift, environment_of, stop
from tests.integration.terminal import CTRL_C, UP, Terminal

pytestmark = pytest.mark.slow

TIMEOUT_S = 60.0
TOP = ("-m", "chairlift", "top")
DOWN = UP[:-1] + "B"
HASH = r"[0-9a-f]{8}"


@contextmanager
def traffic(address: str) -> Iterator[None]:
    """Some requests at a time, until the block is left."""
    is_over = threading.Event()

    async def ask(client: AsyncClient) -> None:
        while not is_over.is_set():
            try:
                await client.complete("abc " * 40, max_tokens=60, temperature=0.0, ignore_eos=True)
            except ChairliftError:
                await asyncio.sleep(0.05)

    async def run() -> None:
        async with AsyncClient(address, connect_timeout_s=TIMEOUT_S) as client:
            await asyncio.gather(*(ask(client) for _ in range(3)))

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(TIMEOUT_S)


def top(address: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *TOP, *arguments],
        env=environment_of({"address": address}) | {"COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


@pytest.mark.usefixtures("worker")
def test_the_batch_moves_in_a_terminal(worker_address: str) -> None:
    """Rows with their steps are drawn anew; a request can be chosen, the picture paused, and q
    leaves the terminal as it was."""
    with traffic(worker_address), Terminal(*TOP, address=worker_address) as terminal:
        assert "chairlift top" in terminal.until(r"ok")
        terminal.until(rf"{HASH} .*[•▁-█]")
        terminal.type(DOWN)
        terminal.until(rf"▸{HASH}")
        terminal.type("p")
        terminal.until("paused")
        terminal.type("q")
        terminal.until(r"\x1b\[\?1049l")
        assert terminal.exit_code() == 0


@pytest.mark.usefixtures("worker")
def test_ctrl_c_leaves(worker_address: str) -> None:
    """With exit code 0 and without a traceback, from a worker without work as well."""
    with Terminal(*TOP, address=worker_address) as terminal:
        terminal.until("idle")
        terminal.type(CTRL_C)
        assert "Traceback" not in terminal.until(r"\x1b\[\?1049l")
        assert terminal.exit_code() == 0


@pytest.mark.usefixtures("worker")
def test_a_line_a_second_without_a_terminal(worker_address: str) -> None:
    """With the figures by name; it ends with its reader."""
    with traffic(worker_address):
        process = top(worker_address)
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and said == ""
    assert all(re.match(r"[0-9T:-]+Z condition=ok running=\d", line) for line in lines)
    assert re.search(r" output_tokens_per_s=[1-9].* itl_p99_ms=[0-9.]+ .*forward_ms=", lines[-1])
    assert "\x1b" not in "".join(lines) + rest


@pytest.mark.usefixtures("worker")
def test_one_picture(worker_address: str) -> None:
    """`--once` prints it after a second, plain for a pipe, with every row."""
    with traffic(worker_address):
        shown, said = top(worker_address, "--once").communicate(timeout=TIMEOUT_S)
    assert said == "" and "\x1b" not in shown
    assert "chairlift top  tiny0  ok" in shown
    assert re.search(rf"{HASH} .*[•▁-█]", shown) and "blocks" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_it_outlives_the_worker(tiny_model: Path) -> None:
    """A worker that is gone is told, and the next one is shown."""
    with short_address() as address:
        settings = {"model": tiny_model, "address": address, "dtype": "float32"}
        with Terminal(*TOP, address=address) as terminal:
            with chairlift("worker", **settings) as worker:
                terminal.until("idle")
                stop(worker)
                terminal.until(r"away.*silent for")
            with chairlift("worker", **settings), traffic(address):
                terminal.until("ok")
                terminal.until(rf"{HASH} .*[•▁-█]")
                terminal.type("q")
                assert "Traceback" not in terminal.until(r"\x1b\[\?1049l")
                assert terminal.exit_code() == 0
