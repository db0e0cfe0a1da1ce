"""GET /health, /ready and /version: whether requests belong here, and what would serve them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from ..client import AsyncClient
from .sending import json_answer

NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"description": "Send no requests here now"}}


def tell_draining(app: FastAPI) -> None:
    """From now on load balancers should look elsewhere, though what comes is still served."""
    app.state.is_draining = True


def is_draining(app: FastAPI) -> bool:
    return getattr(app.state, "is_draining", False)


def health_router(client: AsyncClient) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=NOT_NOW)
    async def health(request: Request) -> Response:
        """200 while the worker makes progress and the server is not about to end; open to all."""
        return _told(_state(request.app, client))

    @router.get("/ready", responses=NOT_NOW)
    async def ready(request: Request) -> Response:
        """200 when a request sent now would be served: as /health, and the tokenizer of the worker
        has come, which takes a moment after a start and after a change of models; open to all. A
        full queue is a matter of single requests, which get a 503 with Retry-After."""
        state = _state(request.app, client)
        return _told(state if client.has_tokenizer or state != "ok" else "starting")

    @router.get("/version")
    async def read_version() -> Response:
        """Which chairlift this is."""
        return json_answer({"version": version("chairlift")})

    return router


def _state(app: FastAPI, client: AsyncClient) -> str:
    return "draining" if is_draining(app) else client.condition


def _told(state: str) -> Response:
    return json_answer({"status": state}, 200 if state == "ok" else 503)
