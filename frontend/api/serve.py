"""`chairlift serve`: the app on a socket, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from ...shared.addresses import is_loopback
from ...shared.errors import AddressError, WorkerUnavailableError
from ...shared.settings import ServeSettings
from ..auth import ApiKeys
from ..client import AsyncClient
from .app import create_app
from .health import tell_draining
from .http_protocol import MAX_HEADER_BYTES, timed_protocol

BACKLOG = 1024
YOUNG_OBJECTS = 50_000  # before the garbage collector looks at them
ANNOUNCE_POLL_S = 60.0
SAME_SIGNAL_S = 0.3  # group and process manager may both deliver what was one wish
SIGNAL_POLL_S = 0.1  # uvicorn's own pace
LAST_WORDS_S = 0.5

Announce = Callable[[], Coroutine[Any, Any, None]]

log = structlog.get_logger("chairlift.serve")


def run(settings: ServeSettings) -> int:
    """The exit code: 0 after SIGTERM or SIGINT, else 1. Raises ChairliftError at start."""
    client = AsyncClient(
        settings.address, max_step_s=settings.max_step_s, curve=settings.load_curve()
    )
    app = create_app(client, settings)
    _warn_if_open(settings)
    listener = _listen(settings.host, settings.port)
    url = _url(settings.host, listener)
    server = Server(app, settings, announce=lambda: _announce(client, url))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    _calm_garbage_collector()
    with listener:
        server.run(sockets=[listener])
    return 0 if server.wish.is_there else 1


def _calm_garbage_collector() -> None:
    """A frame of news makes thousands of objects that live for a moment. By default that sets off
    a full collection a second: 90 ms for 256 streams, in which no token is sent."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


class StopWish:
    """What signals ask for: the first one for an end in order, a later one for an end now."""

    def __init__(self, delay_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The end in order begins `delay_s` after it was asked for."""
        self._delay_s = delay_s
        self._clock = clock
        self._since: float | None = None
        self.is_urgent = False

    def heard(self) -> None:
        """Safe in a signal handler."""
        if self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since > SAME_SIGNAL_S:
            self.is_urgent = True

    @property
    def is_there(self) -> bool:
        return self._since is not None

    @property
    def is_due(self) -> bool:
        if self._since is None:
            return False
        return self.is_urgent or self._clock() - self._since >= self._delay_s


class Server(uvicorn.Server):
    """uvicorn, which drains: /health says so first, then no one comes in, what runs may finish."""

    def __init__(self, app: FastAPI, settings: ServeSettings, announce: Announce) -> None:
        super().__init__(_config(app, settings))
        self.wish = StopWish(settings.drain_delay_s)
        self._app = app
        self._announce = announce
        self._announcement: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Instead of uvicorn's, which raises the signal again when it is done."""
        self.wish.heard()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    async def on_tick(self, counter: int) -> bool:
        if self.wish.is_there:
            tell_draining(self._app)
        self.should_exit = self.should_exit or self.wish.is_due
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._announcement:
            self._announcement.cancel()
        cut = asyncio.create_task(self._cut_when_urgent())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cut.cancel()

    async def _cut_when_urgent(self) -> None:
        """Cancelled requests still say their last words; who does not take them is left."""
        while not self.wish.is_urgent:
            await asyncio.sleep(SIGNAL_POLL_S)
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.sleep(LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=timed_protocol(settings.header_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.timeout_graceful_shutdown = settings.drain_timeout_s  # type: ignore[assignment] # seconds
    return config


async def _announce(client: AsyncClient, url: str) -> None:
    if client.worker is None:
        log.info(f"listening at {url}, waiting for the worker")
    while client.worker is None:
        with suppress(WorkerUnavailableError):
            await client.connect(ANNOUNCE_POLL_S)
    log.info(f"chairlift serves {client.worker.model} at {url}, docs at {url}/docs; try")
    body = '{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}'
    log.info(f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")


def _listen(host: str, port: int) -> socket.socket:
    """Raises AddressError, since a taken port is the user's to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressError(f"{host} port {port}: {reason}: use another --port or --host") from None


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _warn_if_open(settings: ServeSettings) -> None:
    if not is_loopback(settings.host) and not ApiKeys.from_settings(settings):
        log.warning(f"anyone who reaches {settings.host} may ask: set --api-key-file")
