"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    data: str
    name: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def is_done(self) -> bool:
        return self.data == "[DONE]"


def events_of(text: str | bytes) -> list[Event]:
    """Whole events only; every one must have an id, as all of ours do."""
    if isinstance(text, bytes):
        text = text.decode()
    lines = text.split("\n")
    bare = "\n".join(line for line in lines if not line.startswith(":"))
    events = []
    for block in bare.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert fields.keys() <= {"id", "event", "data"}
        events.append(Event(fields["id"], fields["data"], fields.get("event", "")))
    return events


class Assembled:
    """What a client makes of a stream, whichever of the two routes it came from."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.heads: set[str] = set()
        self.text: dict[int, str] = {}
        self.reasoning: dict[int, str] = {}
        self.calls: dict[int, list[Any]] = {}
        self.logprobs: dict[int, dict[str, Any]] = {}  # column by column
        self.token_ids: dict[int, list[int]] = {}
        self.prompts: list[list[int]] = []
        self.openings: Counter[int] = Counter()
        self.reasons: dict[int, list[str]] = {}
        self.usages: list[Any] = []
        self.errors: list[Any] = []
        self.num_done = 0
        for event in events:
            assert not self.num_done, "nothing follows [DONE]"
            if event.is_done:
                self.num_done += 1
            else:
                self._take(event.json)

    def _take(self, chunk: Any) -> None:
        if "error" in chunk:
            self.errors.append(chunk["error"])
            return
        names = ("id", "object", "created", "model", "system_fingerprint")
        self.heads.add(json.dumps([chunk[name] for name in names]))
        if chunk.get("usage"):
            assert chunk["choices"] == [] and not self.usages
            self.usages.append(chunk["usage"])
        if "prompt_token_ids" in chunk:
            self.prompts.append(chunk["prompt_token_ids"])
        for choice in chunk["choices"]:
            self._take_choice(choice)

    def _take_choice(self, choice: Any) -> None:
        index = choice["index"]
        delta = choice.get("delta", {})
        assert index not in self.reasons, "nothing follows the end of a choice"
        self.openings[index] += "role" in delta
        text = choice["text"] if "text" in choice else delta.get("content") or ""
        self.text[index] = self.text.get(index, "") + text
        reasoning = delta.get("reasoning_content", "")
        self.reasoning[index] = self.reasoning.get(index, "") + reasoning
        for call in delta.get("tool_calls", ()):
            self._take_call(self.calls.setdefault(index, []), call)
        for name, column in (choice["logprobs"] or {}).items():
            columns = self.logprobs.setdefault(index, {})
            columns[name] = columns.get(name, []) + column if column is not None else None
        self.token_ids.setdefault(index, []).extend(choice.get("token_ids", ()))
        if "prompt_token_ids" in choice:
            self.prompts.append(choice["prompt_token_ids"])
        if choice["finish_reason"]:
            self.reasons.setdefault(index, []).append(choice["finish_reason"])

    def _take_call(self, calls: list[Any], call: Any) -> None:
        """The first part of a call names it, and only the first."""
        is_first = call.pop("index") == len(calls)
        assert is_first == ("id" in call) == ("name" in call["function"]) == ("type" in call)
        if is_first:
            calls.append(call)
        else:
            calls[-1]["function"]["arguments"] += call["function"]["arguments"]

    @property
    def whole(self) -> Any:
        """Equal for two streams that tell the same."""
        return (
            self.heads,
            {i: text for i, text in self.text.items() if text},
            {i: text for i, text in self.reasoning.items() if text},
            self.calls,
            self.logprobs,
            {i: ids for i, ids in self.token_ids.items() if ids},
            sorted(self.prompts),
            +self.openings,
            self.reasons,
            self.usages,
            self.errors,
            self.num_done,
        )
