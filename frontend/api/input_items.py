"""The items of a response's input, and the messages that they make.

Reference: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from ...shared.errors import InvalidRequestError
from .answer_form import MAX_TOOLS
from .messages import MAX_MESSAGES, MAX_PARTS, CalledFunction, ChatMessage, ToolCall
from .parameters import Neutral, without_neutral

AS_ANSWERED = frozenset({"id", "status"})  # an item that comes back as we sent it
NO_CALLER: Neutral = {"caller": (), "namespace": ()}


class Part(BaseModel):
    """What is in a request; a client may send parts back as they came in an answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    neutral: ClassVar[Neutral] = {}
    harmless: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        try:
            return without_neutral(values, frozenset(cls.model_fields), cls.neutral, cls.harmless)
        except InvalidRequestError as error:
            raise ValueError(str(error)) from None


class InputText(Part):
    """A piece of what was said to the model."""

    neutral: ClassVar[Neutral] = {"prompt_cache_breakpoint": ()}

    type: Literal["input_text"]
    text: str


class OutputText(Part):
    """A piece of what the model said."""

    neutral: ClassVar[Neutral] = {"annotations": ([],)}
    harmless: ClassVar[frozenset[str]] = frozenset({"logprobs", "parsed"})

    type: Literal["output_text"]
    text: str


class ReasoningText(Part):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Part):
    type: Literal["summary_text"]
    text: str


def _text_only(content: Any) -> Any:
    """Says by name what else may not be there."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind not in ("input_text", "output_text"):
            raise ValueError(f"content of type {kind[:40]!r} is not supported, only text")
    return content


def _kind_of(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else "message"


Text = Annotated[
    Annotated[InputText, Tag("input_text")] | Annotated[OutputText, Tag("output_text")],
    Discriminator(_kind_of),
]
Content = Annotated[
    str | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_PARTS)],
    BeforeValidator(_text_only),
]


def _joined(content: str | Sequence[InputText | OutputText | ReasoningText | SummaryText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class InputMessage(Part):
    """One turn of a conversation."""

    harmless: ClassVar[frozenset[str]] = AS_ANSWERED | {"phase"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    def add_to(self, turns: Turns) -> None:
        if self.role == "assistant":
            turns.say(_joined(self.content))
        else:
            turns.add(ChatMessage(role=self.role, content=_joined(self.content)))


class FunctionCall(Part):
    """What an earlier answer called."""

    neutral: ClassVar[Neutral] = {**NO_CALLER, "async": (False,)}
    harmless: ClassVar[frozenset[str]] = AS_ANSWERED | {"parsed_arguments"}

    type: Literal["function_call"]
    call_id: Annotated[str, Field(max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str

    def add_to(self, turns: Turns) -> None:
        function = CalledFunction(name=self.name, arguments=self.arguments)
        turns.call(ToolCall(id=self.call_id, function=function))


class FunctionCallOutput(Part):
    """What came of it."""

    neutral: ClassVar[Neutral] = NO_CALLER
    harmless: ClassVar[frozenset[str]] = AS_ANSWERED | {"name"}

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(max_length=256)]
    output: Content

    def add_to(self, turns: Turns) -> None:
        output = _joined(self.output)
        turns.add(ChatMessage(role="tool", tool_call_id=self.call_id, content=output))


class ReasoningItem(Part):
    """An earlier answer's thoughts, which belong to the answer that follows."""

    neutral: ClassVar[Neutral] = {"encrypted_content": ()}
    harmless: ClassVar[frozenset[str]] = AS_ANSWERED

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], Field(fail_fast=True, max_length=MAX_PARTS)] = Field(
        default=[]
    )
    content: Annotated[list[ReasoningText], Field(fail_fast=True, max_length=MAX_PARTS)] = Field(
        default=[], description="Counts more than a summary of it."
    )

    def add_to(self, turns: Turns) -> None:
        turns.think(_joined(self.content or self.summary))


KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _known_kind(item: Any) -> Any:
    """Says by name what is none."""
    if (kind := _kind_of(item)) not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"an item's type can't be {kind[:40]!r}: known are {known}")
    return item


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of),
    BeforeValidator(_known_kind),
]
InputItems = Annotated[
    list[InputItem], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
]
Given = Annotated[
    Annotated[str, Tag("text")] | Annotated[InputItems, Tag("items")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "items"),
]


class Turns:
    """The messages so far. What one answer was made of is one message again: its thoughts, what it
    said, its calls."""

    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._thoughts: str | None = None
        self._said: str | None = None
        self._calls: list[ToolCall] = []

    def add(self, message: ChatMessage) -> None:
        """That is none of the model's."""
        self._end_answer()
        self._messages.append(message)

    def think(self, text: str) -> None:
        if self._thoughts is not None or self._said is not None or self._calls:
            self._end_answer()
        self._thoughts = text

    def say(self, text: str) -> None:
        if self._said is not None or self._calls:
            self._end_answer()
        self._said = text

    def call(self, call: ToolCall) -> None:
        """Raises InvalidRequestError for more than an answer may have."""
        if len(self._calls) == MAX_TOOLS:
            message = f"more than {MAX_TOOLS} calls follow each other in the input"
            raise InvalidRequestError(message, param="input")
        self._calls.append(call)

    def finished(self) -> list[ChatMessage]:
        self._end_answer()
        return self._messages

    def _end_answer(self) -> None:
        if self._thoughts is None and self._said is None and not self._calls:
            return
        said = self._said if self._said is not None or self._calls else ""
        answer = ChatMessage(
            role="assistant",
            content=said,
            tool_calls=self._calls,
            reasoning_content=self._thoughts,
        )
        self._messages.append(answer)
        self._thoughts, self._said, self._calls = None, None, []


def messages_of(instructions: str | None, given: str | Sequence[InputItem]) -> list[ChatMessage]:
    """A system message first, where there are instructions. Raises InvalidRequestError."""
    turns = Turns()
    if instructions is not None:
        turns.add(ChatMessage(role="system", content=instructions))
    if isinstance(given, str):
        turns.add(ChatMessage(role="user", content=given))
    else:
        for item in given:
            item.add_to(turns)
    return turns.finished()
