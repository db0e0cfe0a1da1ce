"""How one choice of an answer is written, on the two generating routes.

Chunks are plain dicts on purpose: a thousand a second pass here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..replies.call_ids import CallIds
from ..replies.chunk import Chunk
from ..response_id import Endpoint
from .answer_form import Json


class Ending(NamedTuple):
    """What the last chunk of a choice says: no other tells it apart from those before."""

    reason: str
    rest: Chunk


class Shape(Protocol):
    """Of one choice, in a stream and whole."""

    object: str
    chunk_object: str
    has_prompt_in_choice: bool  # what is told of it, instead of beside the choices

    def __init__(self, index: int, ids: CallIds) -> None: ...

    def openings(self) -> list[Json]:
        """Of the chunks that begin a stream."""
        ...

    def parts(self, chunk: Chunk, ending: Ending | None, told: Json | None = None) -> list[Json]:
        """Of the chunks for some text, what is told of its tokens, its end, or all."""
        ...

    def whole(self, chunk: Chunk, reason: str, told: Json) -> Json:
        """Of an answer that is no stream."""
        ...


class CompletionShape:
    object = "text_completion"
    chunk_object = "text_completion"
    has_prompt_in_choice = True

    def __init__(self, index: int, ids: CallIds) -> None:
        self._index = index

    def openings(self) -> list[Json]:
        return []

    def parts(self, chunk: Chunk, ending: Ending | None, told: Json | None = None) -> list[Json]:
        text = chunk.content + (ending.rest.content if ending else "")
        choice: Json = {
            "index": self._index,
            "text": text,
            "logprobs": None,
            "finish_reason": ending.reason if ending else None,
        }
        if told:
            choice.update(told)
        return [choice] if text or ending or told else []

    def whole(self, chunk: Chunk, reason: str, told: Json) -> Json:
        (choice,) = self.parts(chunk, Ending(reason, Chunk()), told)
        return choice


class ChatShape:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    has_prompt_in_choice = False

    def __init__(self, index: int, ids: CallIds) -> None:
        self._index = index
        self._ids = ids

    def openings(self) -> list[Json]:
        return [self._choice({"role": "assistant", "content": ""})]

    def parts(self, chunk: Chunk, ending: Ending | None, told: Json | None = None) -> list[Json]:
        choices = []
        if told:
            choices = [self._choice(chunk.as_delta(self._ids) or {"content": ""}) | told]
        elif chunk:
            choices = [self._choice(chunk.as_delta(self._ids))]
        if ending:
            choices.append(self._choice(ending.rest.as_delta(self._ids), ending.reason))
        return choices

    def whole(self, chunk: Chunk, reason: str, told: Json) -> Json:
        return {
            "index": self._index,
            "message": chunk.as_message(self._ids),
            "logprobs": None,
            "finish_reason": reason,
            **told,
        }

    def _choice(self, delta: Json, finish_reason: str | None = None) -> Json:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }


SHAPES: dict[Endpoint, type[Shape]] = {"completions": CompletionShape, "chat": ChatShape}
