"""What tells the answers of the two generating routes apart.

Chunks are plain dicts on purpose: a thousand a second pass here.
"""

from __future__ import annotations

from typing import Protocol

from .answer_form import Json
from .response_id import Endpoint


class Shape(Protocol):
    """The choices of an answer, in a stream and whole."""

    object: str
    chunk_object: str

    def openings(self, index: int) -> list[Json]:
        """Choices of the chunks that begin a stream."""
        ...

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        """Choices of the chunks for some text, its end, or both."""
        ...

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        """A choice of an answer that is no stream."""
        ...


class CompletionShape:
    object = "text_completion"
    chunk_object = "text_completion"

    def openings(self, index: int) -> list[Json]:
        return []

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return [choice] if text or finish_reason else []

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


class ChatShape:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def openings(self, index: int) -> list[Json]:
        return [_delta(index, {"role": "assistant", "content": ""})]

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        content = [_delta(index, {"content": text})] if text else []
        return [*content, _delta(index, {}, finish_reason)] if finish_reason else content

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
        }


def _delta(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


SHAPES: dict[Endpoint, Shape] = {"completions": CompletionShape(), "chat": ChatShape()}
