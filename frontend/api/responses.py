"""POST /v1/responses: a conversation in, the next turn out as items. Nothing is stored.

Reference: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from .body import read_json, validated
from .context import Context
from .conversation import answer_to
from .responses_request import ResponsesRequest
from .schema import documented


def responses_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", **documented(ResponsesRequest))
    async def create_response(request: Request) -> Response:
        """Answer a conversation, in items: thoughts, messages, calls of functions."""
        asked = validated(ResponsesRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        conversation = asked.conversation(served.tokenizer)
        return await answer_to(conversation, asked, request, served)

    return router
