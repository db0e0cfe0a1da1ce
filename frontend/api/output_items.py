"""The items of a response, one after another, and the events that tell how they grow.

Reference: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Literal

import orjson

from ..replies.call_ids import CallIds
from ..replies.chunk import CallDelta, Chunk
from ..response_id import ResponseId
from .answer_form import Json
from .narrator import Heard

Status = Literal["in_progress", "completed", "incomplete"]


class Item(ABC):
    """One of them while it grows."""

    prefix: str  # of its id
    said: str  # in the names of its own events

    def __init__(self, index: int, base: bytes) -> None:
        self.index = index
        digest = hashlib.sha256(base + b"item" + index.to_bytes(4, "big")).hexdigest()
        self.id = f"{self.prefix}_{digest[:32]}"
        self.logprobs: list[Json] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @abstractmethod
    def as_json(self, status: Status) -> Json: ...

    @abstractmethod
    def opening(self) -> list[Json]: ...

    @abstractmethod
    def closing(self, status: Status) -> list[Json]: ...

    def grow(self, text: str, logprobs: list[Json]) -> Json:
        self._pieces.append(text)
        self.logprobs += logprobs
        return self._own("delta", delta=text)

    def added(self, item: Json) -> Json:
        return {"type": "response.output_item.added", "output_index": self.index, "item": item}

    def done(self, status: Status) -> Json:
        item = self.as_json(status)
        return {"type": "response.output_item.done", "output_index": self.index, "item": item}

    def _own(self, kind: str, **more: object) -> Json:
        place = {"item_id": self.id, "output_index": self.index}
        return {"type": f"response.{self.said}.{kind}", **place, **more}


class _TextItem(Item):
    """Whose text is in one part."""

    @abstractmethod
    def part(self) -> Json: ...

    def opening(self) -> list[Json]:
        added = self.added(self.as_json("in_progress") | {"content": []})
        return [added, self._of_part("added")]

    def closing(self, status: Status) -> list[Json]:
        text = self._own("done", text=self.text)
        return [text, self._of_part("done"), self.done(status)]

    def _own(self, kind: str, **more: object) -> Json:
        return super()._own(kind, content_index=0, **more)

    def _of_part(self, kind: str) -> Json:
        place = {"item_id": self.id, "output_index": self.index, "content_index": 0}
        return {"type": f"response.content_part.{kind}", **place, "part": self.part()}


class Reasoning(_TextItem):
    prefix = "rs"
    said = "reasoning_text"

    def part(self) -> Json:
        return {"type": "reasoning_text", "text": self.text}

    def as_json(self, status: Status) -> Json:
        said = {"summary": [], "content": [self.part()]}
        return {"id": self.id, "type": "reasoning", "status": status, **said}


class Message(_TextItem):
    prefix = "msg"
    said = "output_text"

    def part(self) -> Json:
        told = {"annotations": [], "logprobs": list(self.logprobs)}
        return {"type": "output_text", "text": self.text, **told}

    def as_json(self, status: Status) -> Json:
        said = {"role": "assistant", "content": [self.part()]}
        return {"id": self.id, "type": "message", "status": status, **said}

    def grow(self, text: str, logprobs: list[Json]) -> Json:
        return super().grow(text, logprobs) | {"logprobs": logprobs}

    def closing(self, status: Status) -> list[Json]:
        text, *rest = super().closing(status)
        return [text | {"logprobs": list(self.logprobs)}, *rest]


class Call(Item):
    prefix = "fc"
    said = "function_call_arguments"

    def __init__(self, index: int, base: bytes, call_id: str, name: str) -> None:
        super().__init__(index, base)
        self._call_id = call_id
        self._name = name

    def as_json(self, status: Status) -> Json:
        """Complete when the arguments are, whatever came of the rest of the answer."""
        if status != "in_progress":
            status = "completed" if _is_json(self.text) else "incomplete"
        called = {"call_id": self._call_id, "name": self._name, "arguments": self.text}
        return {"id": self.id, "type": "function_call", "status": status, **called}

    def opening(self) -> list[Json]:
        return [self.added(self.as_json("in_progress"))]

    def closing(self, status: Status) -> list[Json]:
        return [self._own("done", name=self._name, arguments=self.text), self.done(status)]


class Output:
    """Takes what was heard from the first token on. The events depend on the text alone, but for
    the size of the deltas: one item is open at most, and the next one's beginning closes it."""

    def __init__(self, response_id: ResponseId, call_ids: CallIds) -> None:
        self._base = response_id.base
        self._call_ids = call_ids
        self._items: list[Item] = []
        self._closed: list[Json] = []
        self._logprobs: list[Json] = []  # of tokens whose text did not come yet
        self._has_left_thoughts_out = False

    def items(self) -> list[Json]:
        """As they are now; one that is not closed is not complete."""
        still_open = self._items[len(self._closed) :]
        return [*self._closed, *(item.as_json("incomplete") for item in still_open)]

    def take(self, heard: Heard, num_thoughts: int) -> list[Json]:
        """Events. `num_thoughts`: tokens that are thoughts, once those are over."""
        if heard.told:
            self._logprobs += heard.told["logprobs"]["content"]
        events = self._tell(heard.chunk, num_thoughts)
        if heard.ending:
            events += self._tell(heard.ending.rest, num_thoughts)
            events += self._end("incomplete" if heard.ending.reason == "length" else "completed")
        return events

    def _tell(self, chunk: Chunk, num_thoughts: int) -> list[Json]:
        events: list[Json] = []
        if chunk.reasoning:
            events += self._text(Reasoning, chunk.reasoning, [])
        for part in chunk.in_order():
            if isinstance(part, CallDelta):
                events += self._call(part)
            else:
                events += self._text(Message, part, self._due_logprobs(num_thoughts))
        return events

    def _text(self, kind: type[_TextItem], text: str, logprobs: list[Json]) -> list[Json]:
        events: list[Json] = []
        if not (self._items and isinstance(self._items[-1], kind)):
            events = self._open(kind(len(self._items), self._base))
        return [*events, self._items[-1].grow(text, logprobs)]

    def _call(self, delta: CallDelta) -> list[Json]:
        events: list[Json] = []
        if delta.name is not None:
            call_id = self._call_ids[delta.index]
            events = self._open(Call(len(self._items), self._base, call_id, delta.name))
        if delta.arguments:
            events.append(self._items[-1].grow(delta.arguments, []))
        return events

    def _open(self, item: Item) -> list[Json]:
        events = self._close("completed")
        self._items.append(item)
        return [*events, *item.opening()]

    def _close(self, status: Status) -> list[Json]:
        if len(self._closed) == len(self._items):
            return []
        self._closed.append(self._items[-1].as_json(status))
        return self._items[-1].closing(status)

    def _end(self, status: Status) -> list[Json]:
        """Tokens that spell no text are told last."""
        events = []
        if self._logprobs and self._items and isinstance(self._items[-1], Message):
            events = [self._items[-1].grow("", self._due_logprobs(0))]
        return [*events, *self._close(status)]

    def _due_logprobs(self, num_thoughts: int) -> list[Json]:
        due, self._logprobs = self._logprobs, []
        if not self._has_left_thoughts_out:
            self._has_left_thoughts_out = True
            due = due[num_thoughts:]
        return due


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
