"""What responses look like, for the OpenAPI document. Nothing is made of these classes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from .answer_schemas import Queue, TokenLogprob, Told, ToldReceipt

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Json = dict[str, Any]


class OutputTextPart(Told):
    type: Literal["output_text"]
    text: str
    annotations: list[Json]
    logprobs: list[TokenLogprob]


class ReasoningTextPart(Told):
    type: Literal["reasoning_text"]
    text: str


class OutputMessage(Told):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextPart]


class OutputReasoning(Told):
    """What the model thought, whole: there are no summaries."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Json]
    content: list[ReasoningTextPart]


class OutputCall(Told):
    """Incomplete are arguments that are no JSON."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(Told):
    """0 where what is cached is nobody else's business, as there are several callers."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Told):
    reasoning_tokens: int


class ResponseUsage(Told):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    receipt: list[ToldReceipt] | None = None


class IncompleteDetails(Told):
    reason: Literal["max_output_tokens"]


class ResponseProblem(Told):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class ResponseBody(Told):
    """What the request said is repeated. Where a stream is continued, the largest of instructions,
    metadata, text, tool_choice and tools are as if not given, when all together are too large to be
    kept with the stream."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputReasoning | OutputMessage | OutputCall]
    usage: ResponseUsage | None
    error: ResponseProblem | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: Json
    temperature: float
    text: Json | None
    tool_choice: str | Json
    tools: list[Json]
    top_logprobs: int
    top_p: float
    background: Literal[False]
    max_tool_calls: None
    previous_response_id: None
    service_tier: Literal["default"]
    store: Literal[False]
    truncation: Literal["disabled"]


class _Event(Told):
    sequence_number: int


class LifecycleEvent(_Event):
    """The first two, and the last."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseBody


class ItemEvent(_Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputReasoning | OutputMessage | OutputCall


class PartEvent(_Event):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: OutputTextPart | ReasoningTextPart


class TextDelta(_Event):
    type: Literal["response.output_text.delta", "response.reasoning_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob] = Field(default=[])


class TextDone(_Event):
    type: Literal["response.output_text.done", "response.reasoning_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob] = Field(default=[])


class ArgumentsDelta(_Event):
    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(_Event):
    type: Literal["response.function_call_arguments.done"]
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(_Event):
    """Before `response.failed`; alone when the response goes on, for another reader or later."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None
    queue: Queue | None = None


RESPONSE_EVENTS: tuple[type[BaseModel], ...] = (
    LifecycleEvent, ItemEvent, PartEvent, TextDelta, TextDone, ArgumentsDelta, ArgumentsDone,
    ErrorEvent,
)  # fmt: skip
