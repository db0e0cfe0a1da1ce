"""The messages of a conversation, as /v1/chat/completions takes them.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import BeforeValidator, Field, field_validator, model_validator

from .answer_form import MAX_TOOLS
from .parameters import (
    HARMLESS_IN_CALL,
    HARMLESS_IN_MESSAGE,
    NEUTRAL_IN_MESSAGE,
    Neutral,
    Part,
    problem_at,
)

MAX_MESSAGES = 1024
MAX_PARTS = 1024  # of one message
MAX_ODD_CHARACTERS = 1 << 16  # of JSON for the slow parser


class TextPart(Part):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CalledFunction(Part):
    """As the model wrote it."""

    harmless: ClassVar[frozenset[str]] = HARMLESS_IN_CALL

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Annotated[str, Field(description="A JSON object, as text.")]

    @field_validator("arguments")
    @classmethod
    def _are_an_object(cls, text: str) -> str:
        if not isinstance(_parsed(text or "{}"), dict):
            raise ValueError("these have to be a JSON object, as text")
        return text


def _parsed(text: str) -> Any:
    """None for what is no JSON. Models write numbers beyond all bounds and half surrogate pairs,
    which the fast parser refuses."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > MAX_ODD_CHARACTERS:
            return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class ToolCall(Part):
    """What an earlier answer called."""

    harmless: ClassVar[frozenset[str]] = HARMLESS_IN_CALL

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


def _text_only(content: Any) -> Any:
    """Says by name what else a message may not hold."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"content of type {kind[:40]!r} is not supported, only 'text'")
    return content


def _known_role(role: Any) -> Any:
    if role == "function":
        raise ValueError("role 'function' is not supported: use tools, and role 'tool'")
    return role


class ChatMessage(Part):
    """One turn of a conversation."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_MESSAGE
    harmless: ClassVar[frozenset[str]] = HARMLESS_IN_MESSAGE

    role: Annotated[
        Literal["developer", "system", "user", "assistant", "tool"], BeforeValidator(_known_role)
    ]
    content: Annotated[
        str | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_PARTS)] | None,
        BeforeValidator(_text_only),
    ] = None
    name: Annotated[str | None, Field(max_length=64, description="For templates that tell it.")] = (
        None
    )
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] = Field(default=[])
    tool_call_id: Annotated[
        str | None, Field(max_length=256, description="Which call a tool's message answers.")
    ] = None
    reasoning_content: Annotated[
        str | None, Field(description="What an earlier answer's thoughts were.")
    ] = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        for name in ("tool_calls", "reasoning_content") if self.role != "assistant" else ():
            if getattr(self, name):
                raise problem_at(name, f"only for role 'assistant', not {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise problem_at("tool_call_id", "goes with role 'tool', and only with it")
        if self.content is None and not self.tool_calls:
            raise problem_at("content", "is missing; it may be null beside tool_calls alone")
        return self

    @property
    def can_be_continued(self) -> bool:
        return self.content is not None and not self.tool_calls and self.role != "tool"

    @property
    def text(self) -> str | None:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content

    @property
    def num_characters(self) -> int:
        calls = sum(len(call.function.arguments) for call in self.tool_calls)
        return len(self.text or "") + len(self.reasoning_content or "") + calls

    def for_template(self) -> dict[str, Any]:
        calls = [call.model_dump() for call in self.tool_calls] or None
        turn = {"role": self.role, "content": self.text, "tool_calls": calls}
        for name in ("name", "tool_call_id", "reasoning_content"):
            turn[name] = getattr(self, name)
        return {key: value for key, value in turn.items() if value is not None}


Messages = Annotated[
    list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
]
