"""POST /v1/chat/completions: messages in, the next one out.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ...shared.chat_template import MAX_KWARGS
from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_LOGPROBS
from ...shared.tokenizer import Tokenizer
from ..response_id import Endpoint
from .body import read_json, validated
from .choices_request import ChoicesRequest
from .context import Context
from .conversation import Conversation, ReasoningEffort, Scalar, answer_to, with_effort
from .generation_request import TokenCount
from .messages import Messages
from .schema import documented
from .tools import ToolRequest

TemplateKwargs = Annotated[
    dict[str, Scalar],
    Field(max_length=MAX_KWARGS, description="For the chat template's own switches."),
]


class ChatRequest(ChoicesRequest, ToolRequest):
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
    chat_template_kwargs: TemplateKwargs = Field(default={})
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

    def conversation(self, tokenizer: Tokenizer) -> Conversation:
        """Raises InvalidRequestError for what this model can't be asked."""
        effort, kwargs = self.reasoning_effort, self.chat_template_kwargs
        return Conversation(
            param="messages",
            messages=self.messages,
            tools=self.tool_use,
            output=self.grammar,
            output_param=self.grammar_param,
            template_kwargs=with_effort(effort, kwargs, tokenizer, param="reasoning_effort"),
            begins_message=self.begins_message,
            continued=self.continued_text,
        )


def chat_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **documented(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        asked = validated(ChatRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        conversation = asked.conversation(served.tokenizer)
        return await answer_to(conversation, asked, request, served)

    return router
