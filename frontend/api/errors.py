"""Every failure as the API tells it: a status, headers and one JSON shape.

Reference: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...shared.errors import (
    ChairliftError,
    ClientClosedError,
    InvalidRequestError,
    OverloadedError,
    RequestFailedError,
    StreamNotFoundError,
    WorkerUnavailableError,
)
from ...shared.queue_place import QueuePlace

AWAY_RETRY_S = 1.0
CODES = {404: "not_found", 405: "method_not_allowed"}
FAILURE_STATUSES = {"deadline_exceeded": 504, "taken_over": 409}  # any other is a 500
NO_RETRY = {"x-should-retry": "false"}  # the official client would, and make it worse


class HttpError(ChairliftError):
    """A failure that only exists in HTTP, with its own status and code."""

    def __init__(
        self, status: int, message: str, *, code: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What the caller gets to see of a failure."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    queue: QueuePlace | None = None  # that it was refused at

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def place(self) -> dict[str, Any]:
        """In every shape of an error; nothing where the queue was not the reason."""
        if self.queue is None:
            return {}
        position, wait_ms = self.queue.num_ahead, self.queue.expected_wait_ms
        return {"queue": {"position": position, "expected_wait_ms": wait_ms}}

    @property
    def body(self) -> bytes:
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error | self.place})

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, "application/json")


def answer_for(error: Exception, request_id: str) -> ErrorAnswer:
    """Foreseen failures in their own words; of the unforeseen ones the request id alone."""
    message = str(error)
    match error:
        case HttpError():
            return ErrorAnswer(error.status, message, error.code, headers=error.headers)
        case InvalidRequestError():
            return ErrorAnswer(400, message, error.code, error.param)
        case OverloadedError():
            headers = retry_in(error.retry_after_s)
            return ErrorAnswer(503, message, error.code, headers=headers, queue=error.queue)
        case WorkerUnavailableError() | ClientClosedError():
            headers = retry_in(AWAY_RETRY_S)
            return ErrorAnswer(503, message, "worker_unavailable", headers=headers)
        case StreamNotFoundError():
            return ErrorAnswer(404, message, "stream_not_found")
        case RequestFailedError():
            status = FAILURE_STATUSES.get(error.code, 500)
            is_final = status != 500 or error.code == "worker_crashed_on_request"
            headers = NO_RETRY if is_final else {}
            return ErrorAnswer(status, message, error.code, headers=headers)
        case HTTPException():
            code = CODES.get(error.status_code, "http_error")
            return ErrorAnswer(
                error.status_code, error.detail, code, headers=dict(error.headers or {})
            )
    return ErrorAnswer(500, f"internal error; quote request id {request_id}", "internal_error")


def shutting_down(advice: str = "try again soon") -> HttpError:
    message = f"the server is shutting down: {advice}"
    return HttpError(503, message, code="shutting_down", headers=retry_in(AWAY_RETRY_S))


def retry_in(seconds: float) -> dict[str, str]:
    """Whole seconds as HTTP has them, and milliseconds as the official client prefers."""
    return {
        "Retry-After": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(math.ceil(seconds * 1000)),
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for what the framework itself refuses; the Gate answers the rest."""
    return answer_for(error, request_id_of(request.scope)).response()


def request_id_of(scope: Any) -> str:
    caller = scope.get("chairlift.caller")
    return caller.request_id if caller else "unknown"
