"""GET /health: whether the worker makes progress, not merely whether a process exists."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from ..client import AsyncClient


def health_router(client: AsyncClient) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "The worker makes no progress"}})
    async def health() -> Response:
        """200 while the worker makes progress; open to all."""
        body = orjson.dumps({"status": client.condition})
        return Response(body, 200 if client.is_ready else 503, media_type="application/json")

    return router
