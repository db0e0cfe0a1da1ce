"""Starts in any order, ends under load, and a process manager around them."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import permutations
from typing import Any

from tests.integration.audit import audit
from tests.integration.fleet import (
    ReaderProcess,
    fleet,
    is_healthy,
    short_folder,
    specs,
    until,
)
from tests.integration.honcho import Honcho
from tests.integration.http_reader import read
from tests.integration.processes import chairlift as running
from tests.integration.reader import Spec
from tests.integration.workload import requests
from tests.tcp import free_port

from .lab import Lab
from .outcome import Outcome

HONCHO_KILLS_AFTER_S = 5.0
NUM_ORDERS = 8  # of the 24 there are
MAX_APART_S = 1.0


async def drain(lab: Lab) -> Outcome:
    """SIGTERM at full load: no stream is cut within the limit, status 0; with the limit as it is
    by default the end comes within the 5 s that honcho gives."""
    outcome = Outcome("SIGTERM at full load, with 30 s to drain and with the default's 2.5 s")
    await _drain(lab, outcome, is_patient=True)
    await _drain(lab, outcome, is_patient=False)
    return outcome


async def _drain(lab: Lab, outcome: Outcome, *, is_patient: bool) -> None:
    settings: dict[str, Any] = {"drain_timeout_s": 30} if is_patient else {}
    async with fleet(lab.model, **settings) as disturbed:
        await disturbed.add_readers(*specs(disturbed.address, patience_s=10))
        await until(lambda: disturbed.watcher.stats.num_running > 100)
        begin_s = time.monotonic()
        disturbed.worker.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(disturbed.worker.wait, 45)
        seconds = time.monotonic() - begin_s
        outcome.require(status == 0, f"the exit status is 0, not {status}")
        if is_patient:
            outcome.count(audit(await disturbed.finish(), lab.expected))
            outcome.figures["patient_end_s"] = round(seconds, 2)
        else:
            outcome.figures["default_end_s"] = round(seconds, 2)
            outcome.require(seconds < HONCHO_KILLS_AFTER_S, "the end comes in time for honcho")


async def manager(lab: Lab) -> Outcome:
    """SIGTERM for honcho, with the Procfile's commands: everything ends within its 5 s."""
    outcome = Outcome("SIGTERM for honcho")
    with short_folder() as folder, Honcho(folder, lab.model, free_port()) as honcho:
        async with asyncio.timeout(60):
            while not await is_healthy(honcho.port):
                await asyncio.sleep(0.05)
        outcome.figures["num_processes"] = len(honcho.descendants)
        calls = [asyncio.create_task(read(n, r, [honcho.port])) for n, r in enumerate(requests(8))]
        await asyncio.sleep(0.2)
        begin_s = time.monotonic()
        honcho.process.terminate()
        await until(lambda: not honcho.alive, 2 * HONCHO_KILLS_AFTER_S)
        seconds = time.monotonic() - begin_s
        outcome.figures["all_ended_s"] = round(seconds, 2)
        outcome.require("SIGKILL" not in honcho.log, "honcho did not have to kill")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    return outcome


async def start_order(lab: Lab) -> Outcome:
    """Worker, HTTP frontend and two clients start in any order: every request is served."""
    choose = random.Random(lab.seed)
    orders = choose.sample([*permutations(range(4))], NUM_ORDERS)
    outcome = Outcome(f"{NUM_ORDERS} of 24 start orders of four processes, up to 1 s apart")
    for order in orders:
        await _start_in(order, lab, outcome, choose)
    return outcome


async def _start_in(
    order: Sequence[int], lab: Lab, outcome: Outcome, choose: random.Random
) -> None:
    with short_folder() as folder, ExitStack() as stack:
        address, port = f"ipc://{folder / 'sockets'}", free_port()
        readers: list[ReaderProcess] = []

        def start_worker() -> None:
            settings = {"model": lab.model, "dtype": "float32", "address": address}
            stack.enter_context(running("worker", log=folder / "worker.log", **settings))

        def start_server() -> None:
            stack.enter_context(
                running("serve", log=folder / "serve.log", address=address, port=port)
            )

        def start_reader() -> None:
            reader = ReaderProcess(Spec(address, 8, rounds=1), folder, f"reader{len(readers)}")
            stack.callback(reader.close)
            readers.append(reader)

        for which in order:
            (start_worker, start_server, start_reader, start_reader)[which]()
            await asyncio.sleep(choose.uniform(0, MAX_APART_S))
        found = [record for reader in readers for record in await reader.finish()]
        async with asyncio.timeout(30):
            found.append(await read(1, requests()[1], [port]))
        outcome.count(audit(found, lab.expected))
