"""What a response is asked for with.

Reference: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from ...shared.chat_template import MAX_KWARGS
from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_LOGPROBS, Grammar
from ...shared.tokenizer import Tokenizer
from ..response_id import Endpoint
from .answer_form import MAX_TOOLS, Json
from .conversation import Conversation, ReasoningEffort, Scalar, with_effort
from .generation_request import GenerationRequest, TokenCount
from .input_items import (
    FunctionCall,
    FunctionCallOutput,
    Given,
    InputMessage,
    InputText,
    OutputText,
    ReasoningItem,
    messages_of,
)
from .output_format import schema_grammar
from .parameters import HAS_NO_EFFECT, Neutral, Part, problem_at
from .tools import TOOL_CHOICE_KINDS, FunctionTool, ToolName, ToolRequest

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ResponseTool(FunctionTool):
    """A function that the model may call; what it does is the caller's business."""

    neutral: ClassVar[Neutral] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise problem_at("type", f"a tool can't be {kind[:40]!r} here, only a function")
        return values

    @property
    def as_sent(self) -> Json:
        return {"type": self.type, **self.model_dump(exclude={"type"})}

    @property
    def in_chat(self) -> Json:
        function = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": function}


class ResponseNamedTool(Part):
    """The one to call."""

    type: Literal["function"]
    name: ToolName

    @property
    def in_chat(self) -> Json:
        return {"type": "function", "function": {"name": self.name}}


class ResponseAllowedTools(Part):
    """Some of the tools; the model is shown all of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseNamedTool], Field(min_length=1, max_length=MAX_TOOLS)]

    @property
    def in_chat(self) -> Json:
        allowed = {"mode": self.mode, "tools": [tool.in_chat for tool in self.tools]}
        return {"type": "allowed_tools", "allowed_tools": allowed}


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[ResponseNamedTool, Tag("function")]
    | Annotated[ResponseAllowedTools, Tag("allowed_tools")],
    TOOL_CHOICE_KINDS,
]


class TextFormat(Part):
    """Text, any JSON object, or what a schema describes, which is adhered to, `strict` or not."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    description: str | None = None
    source: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema_when_named(self) -> Self:
        is_schema = self.type == "json_schema"
        if is_schema and (self.name is None or self.source is None):
            missing = "schema" if self.source is None else "name"
            raise problem_at(missing, f"{missing} is missing: the type json_schema needs it")
        for name in self.model_fields_set - {"type"}:
            if not is_schema:
                shown = "schema" if name == "source" else name
                message = f"{shown} goes with the type json_schema, and only with it"
                raise problem_at(shown, message)
        return self


class ResponseText(Part):
    """What the output has to be."""

    neutral: ClassVar[Neutral] = {"verbosity": ("medium",)}

    format: TextFormat = Field(default=TextFormat(type="text"))


class ReasoningOptions(Part):
    """How the model thinks, if it does. Its thoughts are told whole, and not summed up."""

    neutral: ClassVar[Neutral] = {
        "context": ("auto",),
        "generate_summary": ("auto",),
        "mode": ("standard",),
        "summary": ("auto",),
    }

    effort: Annotated[
        ReasoningEffort | None,
        Field(
            description="For the chat template; `none` also sets its `enable_thinking` to false."
        ),
    ] = None


class ResponseStreamOptions(Part):
    """Extras of a stream."""

    include_obfuscation: Annotated[bool, Field(description=HAS_NO_EFFECT)] = True


class ResponsesRequest(GenerationRequest):
    """POST /v1/responses."""

    endpoint: ClassVar[Endpoint] = "responses"
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tool_calls",  # of tools that run on the server, and none does
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "user",
        }
    )
    neutral: ClassVar[Neutral] = {
        **dict.fromkeys(
            (
                "access_programs",
                "background_options",
                "conversation",
                "image",
                "moderation",
                "previous_response_id",
                "prompt",
            ),
            (),
        ),
        "background": (False,),
        "context_management": ([],),
        "n": (1,),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "truncation": ("disabled",),
    }

    input: Annotated[
        Given, Field(description="A user's message, or all of the conversation: nothing is stored.")
    ]
    instructions: Annotated[str | None, Field(description="A system message, the first.")] = None
    max_output_tokens: TokenCount | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(
        default=[]
    )
    tool_choice: Annotated[ResponseToolChoice | None, Field(description="By default auto.")] = None
    parallel_tool_calls: Annotated[
        bool, Field(description="Whether there may be several calls in one answer.")
    ] = True
    text: ResponseText = Field(default=ResponseText())
    reasoning: ReasoningOptions = Field(default=ReasoningOptions())
    include: Annotated[
        list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
        Field(max_length=8, description="Thoughts are there anyway, and not encrypted."),
    ] = Field(default=[])
    top_logprobs: Annotated[
        int, Field(ge=0, le=MAX_LOGPROBS, description=f"With {LOGPROBS} in include.")
    ] = 0
    metadata: Annotated[
        dict[MetadataKey, MetadataValue],
        Field(max_length=MAX_METADATA, description="Comes back with the response."),
    ] = Field(default={})
    stream_options: Annotated[ResponseStreamOptions | None, Field(description=HAS_NO_EFFECT)] = None
    chat_template_kwargs: Annotated[
        dict[str, Scalar],
        Field(max_length=MAX_KWARGS, description="For the chat template's own switches."),
    ] = Field(default={})

    @model_validator(mode="after")
    def _can_tell_logprobs(self) -> Self:
        if self.top_logprobs and LOGPROBS not in self.include:
            message = f"top_logprobs goes with {LOGPROBS} in include"
            raise InvalidRequestError(message, param="top_logprobs")
        if LOGPROBS in self.include and self._tool_request.tool_use.callable:
            message = f"include {LOGPROBS} is not for answers that may call tools"
            raise InvalidRequestError(message, param="include")
        return self

    @property
    def _tool_request(self) -> ToolRequest:
        """Raises InvalidRequestError for what does not go together."""
        choice = self.tool_choice
        in_chat = choice if choice is None or isinstance(choice, str) else choice.in_chat
        return ToolRequest.model_validate(
            {
                "tools": [tool.in_chat for tool in self.tools],
                "tool_choice": in_chat,
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        )

    @property
    def prompt_field(self) -> str:
        return "input"

    @property
    def output_limit(self) -> int | None:
        return self.max_output_tokens

    @property
    def num_told_logprobs(self) -> int:
        return self.top_logprobs if LOGPROBS in self.include else -1

    @property
    def repeated(self) -> Json:
        choice = self.tool_choice or "auto"
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning": {"effort": self.reasoning.effort, "summary": None},
            "temperature": self.temperature,
            "text": {"format": self.text.format.model_dump(exclude_unset=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.as_sent for tool in self.tools],
            "top_logprobs": self.top_logprobs,
            "top_p": self.top_p,
        }

    def conversation(self, tokenizer: Tokenizer) -> Conversation:
        """Raises InvalidRequestError for what this model can't be asked."""
        effort, kwargs = self.reasoning.effort, self.chat_template_kwargs
        is_free = self.text.format.type == "text"
        return Conversation(
            param="input",
            messages=messages_of(self.instructions, self.input),
            tools=self._tool_request.tool_use,
            output=None if is_free else self._grammar,
            output_param="" if is_free else "text",
            template_kwargs=with_effort(effort, kwargs, tokenizer, param="reasoning"),
        )

    @property
    def _grammar(self) -> Grammar:
        return schema_grammar("text", self.text.format.source)


RESPONSE_PARTS: tuple[type[Part], ...] = (
    InputMessage, InputText, OutputText, FunctionCall, FunctionCallOutput, ReasoningItem,
    ResponseTool, TextFormat, ResponseText, ReasoningOptions, ResponseStreamOptions,
)  # fmt: skip
