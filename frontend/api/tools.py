"""The tools of a request, and which of them an answer may call or must.

Reference: https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from ...shared.errors import InvalidRequestError
from ..replies.reply_grammar import Tool
from .answer_form import MAX_TOOL_NAME, MAX_TOOLS
from .parameters import Part

ToolName = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_TOOL_NAME}}}$")]


class FunctionTool(Part):
    name: ToolName
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, Field(description="A JSON schema of type object.")
    ] = None
    strict: Annotated[
        bool | None, Field(description="Whether the arguments always adhere to the schema.")
    ] = None

    @field_validator("parameters")
    @classmethod
    def _are_an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and schema.get("type", "object") != "object":
            raise ValueError("this has to be a JSON schema of type object")
        return schema


class ToolSpec(Part):
    """A function that the model may call; what it does is the caller's business."""

    type: Literal["function"]
    function: FunctionTool
    _sent: dict[str, Any] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        spec = handler(values)
        spec._sent = values
        return spec

    @property
    def for_template(self) -> dict[str, Any]:
        """With the keys in the order in which they came, which the prompt follows."""
        function = {key: one for key, one in self._sent["function"].items() if one is not None}
        return {**self._sent, "function": function}


class FunctionName(Part):
    """A tool's, by which it is chosen."""

    name: ToolName


class NamedTool(Part):
    """The one to call."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Part):
    """With `required` one of them is called, with `auto` that is for the model to say."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(Part):
    """Some of the tools; the model is shown all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind(choice: Any) -> str | None:
    """Of one that came, or of one of ours."""
    if isinstance(choice, str):
        return "mode"
    kind = choice.get("type") if isinstance(choice, Mapping) else getattr(choice, "type", None)
    return kind if isinstance(kind, str) else None


TOOL_CHOICE_KINDS = Discriminator(
    _kind,
    custom_error_type="tool_choice",
    custom_error_message="has to be none, auto, required, or an object whose type is function or "
    "allowed_tools",
)
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolChoice, Tag("allowed_tools")],
    TOOL_CHOICE_KINDS,
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools."""

    shown: tuple[dict[str, Any], ...] = ()  # to the model, as OpenAI writes them
    callable: tuple[Tool, ...] = ()
    is_required: bool = False
    is_single: bool = False

    @property
    def needs_grammar(self) -> bool:
        """Whether an answer's calls have to be of a form that models don't always keep."""
        has_strict = any(tool.is_strict for tool in self.callable)
        is_subset = len(self.callable) < len(self.shown)
        return self.is_required or is_subset or bool(self.shown and (self.is_single or has_strict))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.callable)

    @property
    def num_characters(self) -> int:
        """Of what the model is shown, about."""
        return len(orjson.dumps(self.shown))


class ToolRequest(BaseModel):
    """The fields of a request that offer tools."""

    tools: Annotated[list[ToolSpec], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(
        default=[]
    )
    tool_choice: Annotated[
        ToolChoice | None, Field(description="By default auto where there are tools.")
    ] = None
    parallel_tool_calls: Annotated[
        bool, Field(description="Whether there may be several calls in one answer.")
    ] = True

    @model_validator(mode="after")
    def _names_known_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise InvalidRequestError("two tools have the same name", param="tools")
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            message = "tool_choice asks for a call, but there are no tools: send tools"
            raise InvalidRequestError(message, param="tool_choice")
        for name in self._chosen or ():
            if name not in names:
                message = f"tool_choice names {name!r}, which is none of the tools"
                raise InvalidRequestError(message, param="tool_choice")
        return self

    @property
    def tool_use(self) -> ToolUse:
        choice = self.tool_choice
        if choice == "none" or not self.tools:
            return ToolUse()  # a model that is shown tools calls them
        chosen = self._chosen
        functions = [tool.function for tool in self.tools]
        return ToolUse(
            shown=tuple(tool.for_template for tool in self.tools),
            callable=tuple(
                Tool(one.name, one.parameters, bool(one.strict))
                for one in functions
                if chosen is None or one.name in chosen
            ),
            is_required=self._is_required,
            is_single=isinstance(choice, NamedTool) or not self.parallel_tool_calls,
        )

    @property
    def _is_required(self) -> bool:
        choice = self.tool_choice
        if isinstance(choice, AllowedToolChoice):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, NamedTool)

    @property
    def _chosen(self) -> set[str] | None:
        """The names of the tools that may be called; None for all."""
        match self.tool_choice:
            case NamedTool() as named:
                return {named.function.name}
            case AllowedToolChoice() as allowed:
                return {tool.function.name for tool in allowed.allowed_tools.tools}
        return None
