"""GET /health: whether requests belong here, not merely whether a process exists."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from ..client import AsyncClient


def tell_draining(app: FastAPI) -> None:
    """From now on load balancers should look elsewhere, though what comes is still served."""
    app.state.is_draining = True


def health_router(client: AsyncClient) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "Send no requests here now"}})
    async def health(request: Request) -> Response:
        """200 while the worker makes progress and the server is not about to end; open to all."""
        is_draining = getattr(request.app.state, "is_draining", False)
        state = "draining" if is_draining else client.condition
        body = orjson.dumps({"status": state})
        return Response(body, 200 if state == "ok" else 503, media_type="application/json")

    return router
