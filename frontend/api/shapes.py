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
    has_prompt_in_choice: bool  # what is told of it, instead of beside the choices

    def openings(self, index: int) -> list[Json]:
        """Choices of the chunks that begin a stream."""
        ...

    def parts(
        self, index: int, text: str, finish_reason: str | None, told: Json | None = None
    ) -> list[Json]:
        """Choices of the chunks for some text, what is told of its tokens, its end, or all."""
        ...

    def whole(self, index: int, text: str, finish_reason: str, told: Json) -> Json:
        """A choice of an answer that is no stream."""
        ...


class CompletionShape:
    object = "text_completion"
    chunk_object = "text_completion"
    has_prompt_in_choice = True

    def openings(self, index: int) -> list[Json]:
        return []

    def parts(
        self, index: int, text: str, finish_reason: str | None, told: Json | None = None
    ) -> list[Json]:
        choice: Json = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        if told:
            choice.update(told)
        return [choice] if text or finish_reason or told else []

    def whole(self, index: int, text: str, finish_reason: str, told: Json) -> Json:
        (choice,) = self.parts(index, text, finish_reason, told)
        return choice


class ChatShape:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    has_prompt_in_choice = False

    def openings(self, index: int) -> list[Json]:
        return [_delta(index, {"role": "assistant", "content": ""})]

    def parts(
        self, index: int, text: str, finish_reason: str | None, told: Json | None = None
    ) -> list[Json]:
        content = [_delta(index, {"content": text})] if text or told else []
        if told:
            content[0].update(told)
        return [*content, _delta(index, {}, finish_reason)] if finish_reason else content

    def whole(self, index: int, text: str, finish_reason: str, told: Json) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
            **told,
        }


def _delta(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


SHAPES: dict[Endpoint, Shape] = {"completions": CompletionShape(), "chat": ChatShape()}
