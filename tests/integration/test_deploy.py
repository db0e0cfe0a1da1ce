"""docs/deploy.md, run: what it has to copy from does what it says there."""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from chairlift.shared.settings import ServeSettings
from tests.deploy_page import PROGRAM, ROOT, blocks, moved
from tests.frontend.conftest import serving as app_serving
from tests.frontend.fake_client import FakeClient
from tests.integration.http_reader import answered
from tests.integration.managers import Supervisord, nginx, program, supervisord
from tests.integration.processes import until_health
from tests.tcp import free_port

pytestmark = pytest.mark.checkout
PROMPT = {"prompt": "a", "stream": True}


def its_programs(address: str, model: Path, port: int) -> str:
    """The page's, with two frontends from this port on."""
    places = {
        PROGRAM: f"{sys.executable} -m chairlift",
        "ipc:///run/chairlift": address,
        "/srv/models/qwen3": str(model),
        "user=chairlift\n": "",
        "80%(process_num)02d": "%(process_num)d",
        "numprocs=2": f"numprocs=2\nnumprocs_start={port}",
    }
    return moved(blocks("ini")[2], places)


def its_servers(port: int, upstreams: tuple[int, int]) -> str:
    places = {
        "listen 8080": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8000": f"127.0.0.1:{upstreams[0]}",
        "127.0.0.1:8001": f"127.0.0.1:{upstreams[1]}",
    }
    return moved(blocks("nginx")[0], places)


def kill_and_await_another(manager: Supervisord, name: str) -> None:
    pid = manager.control("pid", name)
    os.kill(int(pid), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while manager.control("pid", name) in (pid, "0") and time.monotonic() < deadline:
        time.sleep(0.1)


def test_supervisord_and_nginx(tmp_path: Path, tiny_model: Path, address: str) -> None:
    """One worker and two frontends come up, answer through nginx, are brought back when they die,
    and end in order when they are told to."""
    port, front = free_port(2), free_port()
    names = [
        "chairlift-worker",
        *(f"chairlift-frontend:chairlift-frontend-{p}" for p in (port, port + 1)),
    ]
    with (
        supervisord(tmp_path, its_programs(address, tiny_model, port)) as manager,
        nginx(tmp_path, its_servers(front, (port, port + 1)), front),
    ):
        for each in (port, port + 1):
            until_health(f"http://127.0.0.1:{each}", 200)
        assert [line.split()[1] for line in manager.control("status").splitlines()] == [
            "RUNNING"
        ] * 3
        kill_and_await_another(manager, names[1])
        until_health(f"http://127.0.0.1:{port}", 200)
        url = f"http://127.0.0.1:{front}/v1/completions"
        answer = httpx2.post(url, json={**PROMPT, "max_tokens": 8}, timeout=30)
        assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
        manager.control("stop", "all")
        for name in names:
            assert f"stopped: {name.split(':')[-1]} (exit status 0)" in manager.log


@asynccontextmanager
async def proxied(folder: Path, *fakes: FakeClient) -> AsyncIterator[int]:
    """The port of nginx before the apps over two of these clients."""
    settings = ServeSettings(address=f"ipc://{folder}/sockets")
    async with app_serving(fakes[0], settings) as one, app_serving(fakes[1], settings) as other:
        upstreams = int(one.rpartition(":")[2]), int(other.rpartition(":")[2])
        port = free_port()
        with nginx(folder, its_servers(port, upstreams), port):
            yield port


def test_nginx_passes_events_one_by_one(tmp_path: Path) -> None:
    """Each has come through before the next one is even made; a caller who then hangs up cancels
    the request behind it."""

    async def run() -> None:
        fake = FakeClient()
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(30), proxied(tmp_path, fake, fake) as port:
            async with answered(port, "POST", "/v1/completions", PROMPT) as answer:
                lines = answer.lines()
                for number in range(4):
                    while f'" {number}"' not in await anext(lines):
                        pass
                    (request,) = fake.requests.values()
                    assert request.num_made == number + 1 and not request.is_finished
                    fake.gate.release()
            while any(request.owner for request in fake.requests.values()):
                await asyncio.sleep(0.02)

    asyncio.run(run())


def test_nginx_asks_another_frontend(tmp_path: Path) -> None:
    """What one refuses since its worker is away is answered by the other, POSTs too."""

    async def run() -> None:
        away, there = FakeClient(), FakeClient()
        away.trouble = "away"
        async with asyncio.timeout(30), proxied(tmp_path, away, there) as port:
            for number in range(4):
                async with answered(port, "POST", "/v1/completions", PROMPT) as answer:
                    assert answer.status == 200
                    assert (await answer.reader.read()).endswith(b"data: [DONE]\n\n")
                assert (len(away.asked), len(there.asked)) == (0, number + 1)

    asyncio.run(run())


def test_honcho_exports_units(tmp_path: Path) -> None:
    """The page's command writes units that systemd has nothing to say about, one for each line of
    the Procfile."""
    block = next(block for block in blocks("sh") if "honcho export" in block)
    places = {"./units": str(tmp_path), "--user chairlift": f"--user {getpass.getuser()}"}
    command = shlex.split(moved(block, places))
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, timeout=30)
    units = sorted(tmp_path.iterdir())
    started = [
        line for unit in units for line in unit.read_text().splitlines() if "ExecStart" in line
    ]
    wanted = [line.partition(": ")[2] for line in (ROOT / "Procfile").read_text().splitlines()]
    assert started == [f"ExecStart=/bin/sh -lc '{line}'" for line in sorted(wanted)]
    verify = [program("systemd-analyze", "systemd"), "verify", "--man=no", *map(str, units)]
    found = subprocess.run(verify, capture_output=True, text=True, timeout=30, check=False)
    assert not [line for line in found.stderr.splitlines() if str(tmp_path) in line]
    assert found.returncode == 0, found.stderr
