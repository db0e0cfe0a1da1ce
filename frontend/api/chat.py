"""POST /v1/chat/completions: messages in, the next one out.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ...shared.chat_template import MAX_KWARGS
from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_LOGPROBS
from ...shared.tokenizer import Tokenizer
from .answer import GeneratedAnswer
from .body import read_json, validated
from .context import THREAD_CHARACTERS, Context
from .generation_request import GenerationRequest, TokenCount
from .messages import Messages
from .opening import submission
from .reply_plan import Dialect
from .response_id import Endpoint
from .schema import documented
from .tools import ToolRequest, ToolUse

THREAD_TOOLS = 8  # rendering more than these would hold up other streams

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Scalar = str | int | float | bool | None


class ChatRequest(GenerationRequest, ToolRequest):
    """POST /v1/chat/completions."""

    endpoint: ClassVar[Endpoint] = "chat"

    messages: Messages
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    reasoning_effort: Annotated[
        ReasoningEffort | None,
        Field(
            description="For the chat template; `none` also sets its `enable_thinking` to false."
        ),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Scalar],
        Field(max_length=MAX_KWARGS, description="For the chat template's own switches."),
    ] = Field(default={})
    add_generation_prompt: Annotated[
        bool | None, Field(description="Whether a new message is begun; by default it is.")
    ] = None
    continue_final_message: Annotated[
        bool, Field(description="Whether the answer goes on with the final message's text.")
    ] = False

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise InvalidRequestError(
                    "max_tokens and max_completion_tokens differ: give one", param="max_tokens"
                )
            self.max_tokens = self.max_completion_tokens
        return self

    @model_validator(mode="after")
    def _has_logprobs_where_needed(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs goes with logprobs: set that to true"
            raise InvalidRequestError(message, param="top_logprobs")
        return self

    @property
    def num_told_logprobs(self) -> int:
        return self.top_logprobs if self.logprobs else -1

    @model_validator(mode="after")
    def _begins_or_continues(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            message = "a message is continued or a new one begun: set add_generation_prompt false"
            raise InvalidRequestError(message, param="add_generation_prompt")
        if self.continue_final_message and self.messages[-1].text is None:
            message = "the final message has no text to continue"
            raise InvalidRequestError(message, param="continue_final_message")
        return self

    @property
    def prompt_field(self) -> str:
        return "messages"

    @property
    def begins_message(self) -> bool:
        asked = self.add_generation_prompt
        return not self.continue_final_message if asked is None else asked

    @property
    def continued_text(self) -> str | None:
        """What the answer goes on with."""
        return self.messages[-1].text if self.continue_final_message else None

    def template_kwargs(self, template_source: str) -> dict[str, Scalar]:
        """Raises InvalidRequestError for an effort that the template can't ask the model for."""
        effort, kwargs = self.reasoning_effort, self.chat_template_kwargs
        if effort is None:
            return kwargs
        if effort == "none":
            kwargs = {"enable_thinking": False, **kwargs}
        elif "reasoning_effort" not in template_source:
            message = "this model's chat template has no reasoning_effort: leave it out"
            param = "reasoning_effort"
            raise InvalidRequestError(message, param=param, code="unsupported_parameter")
        return {"reasoning_effort": effort, **kwargs}


def chat_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **documented(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        asked = validated(ChatRequest, await read_json(request, context.settings))
        greeting, tokenizer = context.greeting(asked.model), context.client.tokenizer
        tools = asked.tool_use
        prompt = await _encode(asked, tools, tokenizer, greeting.max_model_len)
        dialect = Dialect.of(tokenizer, context.settings.tool_format)
        plan = dialect.plan(prompt, asked.continued_text, tools, asked.grammar, asked.grammar_param)
        return GeneratedAnswer(context, submission(context, request, asked, [prompt], plan))

    return router


async def _encode(
    asked: ChatRequest, tools: ToolUse, tokenizer: Tokenizer, max_tokens: int
) -> list[int]:
    """In a thread when it would hold up other streams; raises ContextLengthError before that when
    the text can't fit."""
    num_characters = sum(message.num_characters for message in asked.messages)
    tokenizer.check_can_fit(num_characters, max_tokens, param="messages")
    encode = partial(
        tokenizer.encode_chat,
        [message.for_template() for message in asked.messages],
        tools=tools.shown,
        template_kwargs=asked.template_kwargs(tokenizer.chat_template.source),
        add_generation_prompt=asked.begins_message,
        continue_final_message=asked.continue_final_message,
    )
    is_long = num_characters > THREAD_CHARACTERS or len(tools.shown) > THREAD_TOOLS
    return await asyncio.to_thread(encode) if is_long else encode()
