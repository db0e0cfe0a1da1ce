"""GET /health: whether the worker makes progress, not merely whether a process exists."""

from __future__ import annotations

from typing import Literal

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from ..client import AsyncClient

MAX_IDLE_SILENCE_S = 3.0

Condition = Literal["ok", "starting", "away", "wedged", "draining"]


def condition(client: AsyncClient, max_step_s: float) -> Condition:
    """What the silence of the worker means depends on whether it has work.

    Every frame comes from the worker's own loop, so silence is the age of its current step.
    """
    if client.worker is None:
        return "starting"
    stats = client.stats
    has_work = bool(stats.num_running or stats.num_waiting or client.num_live)
    if client.silence_s > (max_step_s if has_work else MAX_IDLE_SILENCE_S):
        return "wedged" if has_work else "away"
    return "draining" if client.is_draining else "ok"


def health_router(client: AsyncClient, max_step_s: float) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "The worker makes no progress"}})
    async def health() -> Response:
        """200 while the worker makes progress; open to all."""
        state = condition(client, max_step_s)
        body = orjson.dumps({"status": state})
        return Response(body, 200 if state == "ok" else 503, media_type="application/json")

    return router
