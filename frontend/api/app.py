"""Puts the HTTP side together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from ...shared.errors import NotInstalledError
from ...shared.settings import ServeSettings
from ..auth import ApiKeys
from ..client import AsyncClient
from .context import Context
from .doors import key_door
from .errors import answer_error
from .gate import Gate
from .idempotency import Idempotency
from .metrics import Metrics
from .parts import PARTS, Part
from .places import Places
from .schema import DocumentedApp
from .spans import Spans

if TYPE_CHECKING:
    from .otel_exporter import OtelExporter


def create_app(client: AsyncClient, settings: ServeSettings) -> FastAPI:
    """The OpenAI API over `client`, which is open for as long as the app runs.

    Raises ChairliftError when the API keys or the secret can't be read.
    """
    keys = ApiKeys.from_settings(settings)
    max_per_tenant = settings.max_requests_per_key if keys else None
    context = context_of(client, settings, max_per_tenant, has_tenants=len(keys) > 1)
    app = app_of(context, PARTS.values())
    app.add_middleware(Gate, door=key_door(keys), places=context.places, metrics=context.metrics)
    return app


def context_of(
    client: AsyncClient,
    settings: ServeSettings,
    max_per_tenant: int | None,
    *,
    has_tenants: bool,
) -> Context:
    """Raises ChairliftError when the secret can't be read or OpenTelemetry isn't there."""
    places = Places(
        max_per_tenant, settings.max_requests, lambda: client.stats.retry_after_ms / 1000
    )
    idempotency = Idempotency.from_settings(settings)
    metrics = Metrics(client)
    spans = Spans(_otel_exporter() if settings.otel_traces else None)
    return Context(client, settings, metrics, places, idempotency, spans, has_tenants=has_tenants)


def _otel_exporter() -> OtelExporter:
    """Raises NotInstalledError."""
    try:
        from .otel_exporter import OtelExporter
    except ModuleNotFoundError as error:
        message = f"--otel-traces needs {error.name}: pip install 'chairlift[otel]'"
        raise NotInstalledError(message) from None
    return OtelExporter()


def app_of(context: Context, parts: Iterable[Part]) -> DocumentedApp:
    """The routes, with nobody at the door yet."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with context.client:
            yield
        await asyncio.to_thread(context.spans.close)

    app = DocumentedApp(
        title="chairlift",
        version=version("chairlift"),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.client = context.client
    app.add_exception_handler(HTTPException, answer_error)
    chosen = list(parts)
    app.body_schemas = tuple(dict.fromkeys(body for part in chosen for body in part.bodies))
    for part in chosen:
        app.include_router(part.router(context))
    return app
