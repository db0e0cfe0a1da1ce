"""A client without a worker behind it, and the app over it on a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import openai
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from chairlift.frontend.api import create_app
from chairlift.frontend.api.http_protocol import timed_protocol
from chairlift.frontend.client import AsyncClient
from chairlift.shared.settings import ServeSettings
from tests.frontend.fake_client import FakeClient


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Nobody reads the requests' log lines here, and tracebacks take their time to draw."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def app_over(fake: FakeClient, settings: ServeSettings) -> FastAPI:
    return create_app(cast(AsyncClient, fake), settings)


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def settings(address: str) -> ServeSettings:
    return ServeSettings(address=address, best_priority=-100)  # all that the schema has


@pytest.fixture
def http(fake: FakeClient, settings: ServeSettings) -> Iterator[TestClient]:
    """The app without a socket: for what is neither a stream nor a disconnect."""
    with TestClient(app_over(fake, settings)) as client:
        yield client


@asynccontextmanager
async def serving(fake: FakeClient, settings: ServeSettings) -> AsyncIterator[str]:
    """The app on a loopback port; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app_over(fake, settings),
        log_config=None,
        ws="none",
        http=timed_protocol(settings.header_timeout_s),
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    fake.stop_server = lambda: setattr(server, "should_exit", True)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):
            await task


@pytest.fixture
async def url(fake: FakeClient, settings: ServeSettings) -> AsyncIterator[str]:
    async with serving(fake, settings) as address:
        yield address


@pytest.fixture
async def other_url(fake: FakeClient, settings: ServeSettings) -> AsyncIterator[str]:
    """Another frontend of the same worker."""
    stop_server = fake.stop_server
    async with serving(fake, settings) as address:
        fake.stop_server = stop_server
        yield address


@pytest.fixture
async def api(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, without its retries."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client
