"""GET /v1/streams/{id}: an answer goes on where its reader lost it, on whichever frontend."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...shared.errors import InvalidRequestError
from ..response_id import ResponseId
from .answer import ContinuedAnswer
from .context import Context
from .opening import Attachment
from .position import HEADER, Position
from .schema import ERRORS, parameter

IN_QUERY = "last_event_id"
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

# fmt: off
DOCUMENTATION: dict[str, Any] = {
    "responses": {
        **ERRORS,
        200: {"content": {"text/event-stream": {}}, "description": "The rest of the stream"},
    },
    "openapi_extra": {
        "parameters": [
            parameter(HEADER, "header", "The id of the last event that you have; without it, all."),
            parameter(IN_QUERY, "query", f"As {HEADER}, which counts more when both are there."),
            parameter("read_only", "query", "Watch, and leave the stream to its reader.",
                      {"type": "boolean", "default": False}),
        ]
    },
}
# fmt: on


def streams_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/streams/{response_id}", **DOCUMENTATION)
    async def continue_stream(request: Request, response_id: str) -> Response:
        """Continue a completion's, a chat's or a response's stream by the `id` of its answer.

        It can be read while it runs, and for a while after that or after its reader has gone. Who
        continues it takes it over: the former reader's stream ends with the error `taken_over`.
        """
        _check_names(request)
        attachment = Attachment(
            ResponseId.parse(response_id), _position(request), _takes_over(request)
        )
        return ContinuedAnswer(context, attachment)

    return router


def _check_names(request: Request) -> None:
    for name in request.query_params:
        if name not in (IN_QUERY, "read_only"):
            message = f"unknown parameter {name[:40]}"
            raise InvalidRequestError(message, param=name[:40], code="unknown_parameter")


def _position(request: Request) -> Position | None:
    """A browser that reconnects sends the header, and the address as it was at first."""
    given = request.headers.get(HEADER) or request.query_params.get(IN_QUERY)
    return Position.parse(given) if given else None


def _takes_over(request: Request) -> bool:
    given = request.query_params.get("read_only", "false").lower()
    if given not in BOOLEANS:
        raise InvalidRequestError("read_only must be true or false", param="read_only")
    return not BOOLEANS[given]
