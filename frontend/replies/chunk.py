"""What a stretch of an answer's text turned out to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .call_ids import CallIds


class CallDelta(Struct, frozen=True):
    """News of one call; the first of a call has its name."""

    index: int
    name: str | None
    arguments: str  # all fragments of a complete call together are a JSON object
    after: int = 0  # characters of the chunk's content

    def as_json(self, ids: CallIds) -> dict[str, Any]:
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        return {"index": self.index, **self.as_call(ids)}

    def as_call(self, ids: CallIds) -> dict[str, Any]:
        return {
            "id": ids[self.index],
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class Chunk(Struct, frozen=True):
    """All that was determined by some more text: of each call at most one delta."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = []

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)

    def __add__(self, later: Chunk) -> Chunk:
        calls = {call.index: call for call in self.calls}
        for call in later.calls:
            if (begun := calls.get(call.index)) is not None:
                calls[call.index] = replace(begun, arguments=begun.arguments + call.arguments)
            else:
                calls[call.index] = replace(call, after=len(self.content) + call.after)
        return Chunk(
            self.reasoning + later.reasoning,
            self.content + later.content,
            list(calls.values()),
        )

    def in_order(self) -> Iterator[str | CallDelta]:
        """The content, in pieces, and the calls; reasoning comes before either."""
        start = 0
        for call in self.calls:
            if call.after > start:
                yield self.content[start : call.after]
                start = call.after
            yield call
        if start < len(self.content):
            yield self.content[start:]

    def as_delta(self, ids: CallIds) -> dict[str, Any]:
        """The `delta` of a streamed choice, with what there is."""
        delta: dict[str, Any] = {}
        if self.reasoning:
            delta["reasoning_content"] = self.reasoning
        if self.content:
            delta["content"] = self.content
        if self.calls:
            delta["tool_calls"] = [call.as_json(ids) for call in self.calls]
        return delta

    def as_message(self, ids: CallIds) -> dict[str, Any]:
        """The `message` of a whole answer's choice; null content when all it does is call."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["content"] = self.content or None
            message["tool_calls"] = [call.as_call(ids) for call in self.calls]
        return message
