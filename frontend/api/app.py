"""Puts the HTTP side together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from ...shared.settings import ServeSettings
from ..auth import ApiKeys
from ..client import AsyncClient
from .chat import ChatRequest, chat_router
from .completions import CompletionRequest, completions_router
from .context import Context
from .embeddings import EmbeddingRequest, embeddings_router
from .errors import answer_error
from .gate import Gate
from .health import health_router
from .idempotency import Idempotency
from .messages import CalledFunction, ChatMessage, ToolCall
from .metrics import Metrics, metrics_router
from .models import models_router
from .page import page_router
from .places import Places
from .responses import responses_router
from .responses_request import RESPONSE_PARTS, ResponsesRequest
from .schema import DocumentedApp
from .spans import Spans
from .streams import streams_router
from .tokenize import DetokenizeRequest, TokenizeRequest, tokenize_router
from .watch import watch_router


def create_app(client: AsyncClient, settings: ServeSettings) -> FastAPI:
    """The OpenAI API over `client`, which is open for as long as the app runs.

    Raises ChairliftError when the API keys or the secret can't be read.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    keys = ApiKeys.from_settings(settings)
    metrics = Metrics(client)
    places = Places(
        settings.max_requests_per_key if keys else None,
        settings.max_requests,
        lambda: client.stats.retry_after_ms / 1000,
    )
    idempotency = Idempotency.from_settings(settings)
    context = Context(
        client, settings, metrics, places, idempotency, Spans(), has_tenants=len(keys) > 1
    )
    app = DocumentedApp(
        title="chairlift",
        version=version("chairlift"),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, answer_error)
    app.body_schemas = (
        ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingRequest, TokenizeRequest,
        DetokenizeRequest, ChatMessage, ToolCall, CalledFunction, *RESPONSE_PARTS,
    )  # fmt: skip
    app.include_router(completions_router(context))
    app.include_router(chat_router(context))
    app.include_router(responses_router(context))
    app.include_router(streams_router(context))
    app.include_router(embeddings_router(context))
    app.include_router(tokenize_router(context))
    app.include_router(models_router(context))
    app.include_router(watch_router(context))
    app.include_router(health_router(client))
    app.include_router(metrics_router(metrics))
    app.include_router(page_router())
    app.add_middleware(Gate, keys=keys, places=places, metrics=metrics)
    return app
