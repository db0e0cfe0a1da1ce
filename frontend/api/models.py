"""GET /v1/models: the one model that the worker serves.

Reference: https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from ...shared.messages import Greeting
from .context import Context, unknown_model
from .schema import ERRORS
from .sending import json_answer


def models_router(context: Context) -> APIRouter:
    router = APIRouter(responses={status: ERRORS[status] for status in (401, 404, 503)})

    @router.get("/v1/models")
    async def list_models() -> Response:
        """The models served here."""
        return json_answer({"object": "list", "data": [_model(context.greeting(None))]})

    @router.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> Response:
        """One model; its name may contain slashes."""
        greeting = context.greeting(None)
        if model_id != greeting.model:
            raise unknown_model(model_id, greeting)
        return json_answer(_model(greeting))

    return router


def _model(greeting: Greeting) -> dict[str, Any]:
    return {
        "id": greeting.model,
        "object": "model",
        "created": greeting.created,
        "owned_by": "chairlift",
        "max_model_len": greeting.max_model_len,
    }
