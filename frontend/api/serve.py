"""`chairlift serve`: the app on a socket, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress

import structlog
import uvicorn

from ...shared.addresses import is_loopback
from ...shared.errors import AddressError, WorkerUnavailableError
from ...shared.settings import ServeSettings
from ..auth import ApiKeys
from ..client import AsyncClient
from .app import create_app
from .http_protocol import timed_protocol

DRAIN_S = 3  # process managers kill after five
MAX_HEADER_BYTES = 16 << 10
BACKLOG = 1024
ANNOUNCE_POLL_S = 60.0

log = structlog.get_logger("chairlift.serve")


def run(settings: ServeSettings) -> int:
    """The exit code: 0 after SIGTERM or SIGINT, else 1. Raises ChairliftError at start."""
    client = AsyncClient(settings.address, max_step_s=settings.max_step_s)
    app = create_app(client, settings)
    _warn_if_open(settings)
    listener = _listen(settings.host, settings.port)
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
        timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config, client, _url(settings.host, listener))
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        """uvicorn raises the signal again when it is done, so that this ends it in order."""
        signals.append(number)
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with listener:
        server.run(sockets=[listener])
    return 0 if signals else 1


class _Server(uvicorn.Server):
    """Says where it is, once there is something to talk to."""

    def __init__(self, config: uvicorn.Config, client: AsyncClient, url: str) -> None:
        super().__init__(config)
        self._client = client
        self._url = url
        self._announcement: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announcement = asyncio.create_task(_announce(self._client, self._url))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._announcement:
            self._announcement.cancel()
        await super().shutdown(sockets=sockets)


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
