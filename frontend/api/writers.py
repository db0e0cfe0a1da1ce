"""Who writes an answer: each endpoint's own, for streams and for what comes whole."""

from __future__ import annotations

from typing import Protocol

from ...shared.tokenizer import Tokenizer
from ..results import Delta
from .answer_form import AnswerForm
from .event_stream import EventStream
from .narrator import Listener, narrators
from .opening import OpenedAnswer
from .position import Position
from .response import Response, WholeResponse
from .response_stream import ResponseStream
from .whole_answer import WholeAnswer


class StreamWriter(Protocol):
    """Takes every choice's deltas from the first token on, and writes what comes after a position;
    see EventStream."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def is_behind(self) -> bool: ...

    def openings(self) -> bytes: ...

    def write(self, index: int, delta: Delta) -> bytes: ...

    def leave_out(self, index: int) -> bytes: ...

    def fail(self, error: Exception, request_id: str) -> bytes: ...


class WholeWriter(Protocol):
    """Takes every choice's deltas from the first token on; see WholeAnswer."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def num_tokens(self) -> int: ...

    def take(self, index: int, delta: Delta) -> None: ...

    def body(self) -> bytes: ...


def stream_writer(
    opened: OpenedAnswer, form: AnswerForm, tokenizer: Tokenizer, after: Position | None
) -> StreamWriter:
    """Raises InvalidRequestError when `after` is of another stream."""
    if form.endpoint == "responses":
        return ResponseStream(_response(opened, form, tokenizer), after)
    told = narrators(form, opened.response_id, tokenizer, opened.prompts)
    return EventStream(opened.response_id, form, told, after)


def whole_writer(opened: OpenedAnswer, form: AnswerForm, tokenizer: Tokenizer) -> WholeWriter:
    if form.endpoint == "responses":
        return WholeResponse(_response(opened, form, tokenizer))
    told = narrators(form, opened.response_id, tokenizer, opened.prompts)
    return WholeAnswer(opened.response_id, form, told)


def _response(opened: OpenedAnswer, form: AnswerForm, tokenizer: Tokenizer) -> Response:
    listener = Listener(0, form, opened.response_id, tokenizer, [])
    return Response(opened.response_id, form, listener, opened.repeated)
