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
from ..replies.reasoning_format import detect_reasoning
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

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Scalar = str | int | float | bool | None


class ChatRequest(GenerationRequest, ToolRequest):
    """POST /v1/chat/completions."""

    endpoint: ClassVar[Endpoint] = "chat"

    messages: Messages
    max_completion_tokens: Annotated[
        TokenCount | None, Field(description="The same as max_tokens.")
    ] = None
    logprobs: Annotated[bool, Field(description="Tell each token's log probability.")] = False
    top_logprobs: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_LOGPROBS,
            description="And so many of the likeliest; goes with logprobs.",
        ),
    ] = 0
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
        if self.continue_final_message and not self.messages[-1].can_be_continued:
            message = "the final message has no text, calls tools or is a tool's: send it whole"
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
        can_stop = "enable_thinking" in template_source or not detect_reasoning(template_source)
        if "reasoning_effort" not in template_source and not (effort == "none" and can_stop):
            message = f"this model's chat template can't ask for effort {effort!r}: leave it out"
            param = "reasoning_effort"
            raise InvalidRequestError(message, param=param, code="unsupported_parameter")
        if effort == "none":
            kwargs = {"enable_thinking": False, **kwargs}
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
    is_long = num_characters + tools.num_characters > THREAD_CHARACTERS
    return await asyncio.to_thread(encode) if is_long else encode()
