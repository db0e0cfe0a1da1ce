"""The real app over a scripted client, with a feed that a test writes, on a loopback port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

import chairlift
from chairlift.frontend.api import create_app
from chairlift.frontend.api.http_protocol import timed_protocol
from chairlift.frontend.client import AsyncClient
from chairlift.frontend.mount import PART_NAMES
from chairlift.shared.settings import ServeSettings
from tests.frontend.fake_client import FakeClient, count_up
from tests.page.fake_feed import FakeFeed
from tests.page.rehearsal import Rehearsal

STOP_S = 10.0


@dataclass(frozen=True)
class FakeServer:
    """One server, and the hands that move it."""

    url: str
    feed: FakeFeed
    fake: FakeClient
    rehearsal: Rehearsal
    loop: asyncio.AbstractEventLoop

    def begin_anew(self) -> None:
        """Whoever looked before is forgotten."""
        self.fake.script, self.fake.gate = count_up, None
        for seen in (self.fake.asked, self.fake.streams, self.fake.requests):
            seen.clear()

    def tell_steps(self, count: int) -> None:
        """So many steps more of the rehearsal, at once."""
        self.feed.tell_steps(self.rehearsal.steps(count))

    def permit(self, count: int = 1) -> None:
        """So many tokens of the scripted answers, where the client has a gate."""
        gate = self.fake.gate
        assert gate is not None
        for _ in range(count):
            self.loop.call_soon_threadsafe(gate.release)


@contextmanager
def serving(settings: ServeSettings, rehearsal: Rehearsal) -> Iterator[FakeServer]:
    """As `chairlift serve` does."""
    fake = FakeClient()
    app = create_app(cast(AsyncClient, fake), settings)
    with _running(app, app, fake, rehearsal) as server:
        yield server


@contextmanager
def serving_below(path: str, rehearsal: Rehearsal) -> Iterator[FakeServer]:
    """Inside another application."""
    fake = MountedClient()
    app = chairlift.asgi_app(cast(AsyncClient, fake), parts=PART_NAMES)
    with _running(Starlette(routes=[Mount(path, app)]), app, fake, rehearsal) as server:
        yield replace(server, url=f"{server.url}{path}/")


class MountedClient(FakeClient):
    """Who is mounted asks where the worker is, and meets it at the first request."""

    address = "ipc:///nowhere"

    async def connect(self, timeout_s: float) -> None:
        await asyncio.sleep(0)


@contextmanager
def _running(
    host: ASGIApp, app: FastAPI, fake: FakeClient, rehearsal: Rehearsal
) -> Iterator[FakeServer]:
    """`app` is what has the feed, `host` what has the socket."""
    feed = FakeFeed()
    feed.opening = [("worker", rehearsal.worker()), ("stats", rehearsal.stats())]
    app.router.routes.insert(0, Route("/watch", feed.watch))
    config = uvicorn.Config(
        host, log_config=None, ws="none", http=timed_protocol(10), timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield FakeServer(url, feed, fake, rehearsal, loop)
    finally:
        feed.drop()
        server.should_exit = True
        thread.join(STOP_S)
        loop.close()
