"""The ends that both sides give a request, each in the same words."""

from __future__ import annotations

from .messages import Finish

CANCELLED = Finish("abort", code="cancelled", message="cancelled by the client")
TAKEN_OVER = Finish("abort", code="taken_over", message="another reader has taken the stream over")
NOT_FOUND = Finish(
    "error",
    code="stream_not_found",
    message="no such request runs, or is kept: it ended some time ago, or never began",
)
CONFLICT = Finish(
    "error",
    code="request_id_conflict",
    message="another request runs under this id: use a new one",
)
OUT_OF_TIME = Finish(
    "error", code="deadline_exceeded", message="the request did not finish before its deadline"
)
