"""A response as server-sent events, from any position on. Sans-IO: deltas in, bytes out.

Reference: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import orjson

from ..results import Delta
from .answer_form import Json
from .errors import ErrorAnswer, answer_for
from .event_stream import Cursor
from .position import HEADER, Position, never_was, written
from .response import Response

NUM_ERROR_EVENTS = 2  # at most, at a stream's end; they have no place of their own
OVER_FOR_THE_READER = frozenset({"taken_over", "shutting_down"})  # the response goes on
INITIAL: Json = {"status": "in_progress", "output": [], "usage": None}


class ResponseStream:
    """As EventStream. A position's characters are those of all deltas, of thoughts and of calls'
    arguments too, and one for each event that is none; its tokens are those of which log
    probabilities were told."""

    def __init__(self, response: Response, after: Position | None = None) -> None:
        """Raises InvalidRequestError when `after` is of another kind of stream. As does `write`,
        when what comes shows that `after` never was a place in this one."""
        after = after or Position.start(1)
        after.check_fits(1)
        held = after.choices[0]
        at_most = held.num_tokens + held.num_characters + NUM_ERROR_EVENTS if held else 0
        if after.has_usage or not bool(held) <= after.num_events <= at_most:
            raise never_was()
        self._response = response
        self._cursor = Cursor(held)
        self._mark = str(held or "-")
        self._num_events = after.num_events
        self.is_complete = False

    @property
    def is_behind(self) -> bool:
        """Whether not all came yet that the reader has, so `after` may prove wrong."""
        return self._cursor.is_behind

    def openings(self) -> bytes:
        body = self._response.body()
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._tell({"type": kind, "response": body}) for kind in kinds)

    def write(self, index: int, delta: Delta) -> bytes:
        """The events for what came."""
        parts = [self._tell(event) for event in self._response.take(delta)]
        if delta.finish:
            self.is_complete = True
            parts.append(self._tell(self._lifecycle(self._response.body()), is_last=True))
        return b"".join(parts)

    def leave_out(self, index: int) -> bytes:
        """When it is no longer kept, and the reader has all."""
        self._cursor.skip()
        self.is_complete = True
        return b""

    def fail(self, error: Exception, request_id: str) -> bytes:
        """The last events, instead of what would still come."""
        self.is_complete = True
        answer = answer_for(error, request_id)
        told = {"code": answer.code, "message": answer.message, "param": answer.param}
        events = self._event({"type": "error", **told, **answer.place})
        if answer.code not in OVER_FOR_THE_READER and answer.param != HEADER:
            body = self._response.fail(_official_code(answer), answer.message)
            events += self._event(self._lifecycle(body))
        return events

    def _lifecycle(self, body: Json) -> Json:
        return {"type": f"response.{body['status']}", "response": body}

    def _tell(self, event: Json, *, is_last: bool = False) -> bytes:
        """What the reader lacks of it."""
        cursor = self._cursor
        if "delta" in event:
            text, logprobs = event["delta"], event.get("logprobs", [])
            num_tokens, num_characters = cursor.take(len(logprobs), len(text), is_last=False)
            is_new = len(text) > num_characters or len(logprobs) > num_tokens
            event = event | {"delta": text[num_characters:]}
            if logprobs:
                event["logprobs"] = logprobs[num_tokens:]
        else:
            _, num_characters = cursor.take(0, 1, is_last=is_last)
            is_new = num_characters == 0
        if cursor.has_end or not is_new:
            return b""
        self._mark = cursor.advance(is_finished=is_last)
        return self._event(event)

    def _event(self, event: Json) -> bytes:
        number, kind = self._num_events, event["type"]
        self._num_events += 1
        position = written([self._mark], has_usage=False, num_events=self._num_events)
        data = orjson.dumps({"type": kind, "sequence_number": number, **event})
        return f"id: {position}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"


def _official_code(answer: ErrorAnswer) -> str:
    """Of the few that a response's error may have; the error event has our own."""
    return "server_error" if answer.status >= 500 else "invalid_prompt"
