"""The tools of a request, and which of them an answer may call or must.

Reference: https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...shared.errors import InvalidRequestError
from ..replies.reply_grammar import Tool
from .answer_form import MAX_TOOL_NAME, MAX_TOOLS

ToolName = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_TOOL_NAME}}}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class FunctionTool(_Strict):
    name: ToolName
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, Field(description="A JSON schema of type object.")
    ] = None
    strict: Annotated[
        bool | None, Field(description="Whether the arguments always adhere to the schema.")
    ] = None


class ToolSpec(_Strict):
    """A function that the model may call; what it does is the caller's business."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(_Strict):
    name: ToolName


class NamedTool(_Strict):
    """The one to call."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(_Strict):
    """Some of the tools; the model is shown all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


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
        return self.is_required or bool(self.callable and (self.is_single or has_strict))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.callable)


class ToolRequest(BaseModel):
    """The fields of a request that offer tools."""

    tools: Annotated[list[ToolSpec], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(
        default=[]
    )
    tool_choice: (
        Annotated[
            Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice,
            Field(description="By default auto where there are tools."),
        ]
        | None
    ) = None
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
            shown=tuple(tool.model_dump(exclude_none=True) for tool in self.tools),
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
