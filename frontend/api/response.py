"""The body of a response, at whichever stage, and a whole one. Sans-IO: deltas in, a body out.

Reference: https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from typing import Literal

import orjson

from ..response_id import ResponseId
from ..results import Delta
from .answer_form import AnswerForm, Json
from .narrator import Listener
from .output_items import Output
from .usage import Usage

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
NOTHING: Json = {
    "background": False,
    "error": None,
    "incomplete_details": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "service_tier": "default",
    "store": False,
    "truncation": "disabled",
    "usage": None,
}


class Response:
    """Takes the deltas from the first token on, and says at any time what came of them."""

    def __init__(
        self, response_id: ResponseId, form: AnswerForm, listener: Listener, repeated: Json
    ) -> None:
        self._head = {
            "id": str(response_id),
            "object": "response",
            "created_at": form.created,
            "status": "",
            "model": form.model,
            "output": [],
            **NOTHING,
            **repeated,
        }
        self._listener = listener
        self._output = Output(response_id, listener.call_ids)
        self._usage = Usage(response_id, form, [listener])
        self.status: ResponseStatus = "in_progress"
        self.num_tokens = 0

    def take(self, delta: Delta) -> list[Json]:
        """The events that tell of it."""
        self.num_tokens += len(delta.token_ids)
        self._usage.add(0, delta)
        heard = self._listener.hear(delta)
        if heard.ending:
            self.status = "incomplete" if heard.ending.reason == "length" else "completed"
        return self._output.take(heard, self._listener.num_reasoning_tokens)

    def fail(self, code: str, message: str) -> Json:
        self.status = "failed"
        return self.body() | {"error": {"code": code, "message": message}}

    def body(self) -> Json:
        body = {**self._head, "status": self.status, "output": self._output.items()}
        if self.status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.status in ("completed", "incomplete"):
            body["usage"] = self._usage.of_response()
        return body


class WholeResponse:
    """One that is no stream."""

    def __init__(self, response: Response) -> None:
        self._response = response

    @property
    def is_complete(self) -> bool:
        return self._response.status != "in_progress"

    @property
    def num_tokens(self) -> int:
        """That there are to tell of."""
        return self._response.num_tokens

    def take(self, index: int, delta: Delta) -> None:
        self._response.take(delta)

    def body(self) -> bytes:
        return orjson.dumps(self._response.body())
