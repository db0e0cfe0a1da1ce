"""POST /v1/chat/completions: messages in, the next one out.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.responses import Response

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_LOGPROBS
from ...shared.tokenizer import Tokenizer
from .answer import GeneratedAnswer
from .body import read_json, validated
from .context import THREAD_CHARACTERS, Context
from .generation_request import GenerationRequest, TokenCount
from .opening import submission
from .parameters import NEUTRAL_IN_MESSAGE, without_neutral
from .response_id import Endpoint
from .schema import documented

MAX_MESSAGES = 1024
MAX_PARTS = 1024  # of one message


class TextPart(BaseModel):
    """A piece of a message's text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


def _text_only(content: Any) -> Any:
    """Says by name what else a message may not hold."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"content of type {kind[:40]!r} is not supported, only 'text'")
    return content


def _known_role(role: Any) -> Any:
    if role in ("tool", "function"):
        raise ValueError(f"role {role!r} is not supported yet")
    return role


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Annotated[
        Literal["developer", "system", "user", "assistant"], BeforeValidator(_known_role)
    ]
    content: Annotated[
        str | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_PARTS)],
        BeforeValidator(_text_only),
    ]
    name: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        try:
            return without_neutral(
                values, frozenset(cls.model_fields), NEUTRAL_IN_MESSAGE, frozenset({"id"})
            )
        except InvalidRequestError as error:
            raise ValueError(str(error)) from None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def for_template(self) -> dict[str, str]:
        named = {"name": self.name} if self.name is not None else {}
        return {"role": self.role, "content": self.text, **named}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    endpoint: ClassVar[Endpoint] = "chat"

    messages: Annotated[
        list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    ]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0

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

    @property
    def prompt_field(self) -> str:
        return "messages"


def chat_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **documented(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        asked = validated(ChatRequest, await read_json(request, context.settings))
        greeting = context.greeting(asked.model)
        prompt = await _encode(asked.messages, context.client.tokenizer, greeting.max_model_len)
        return GeneratedAnswer(context, submission(context, request, asked, [prompt], greeting))

    return router


async def _encode(messages: list[ChatMessage], tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """In a thread when it would hold up other streams; raises ContextLengthError before that when
    the text can't fit."""
    turns = [message.for_template() for message in messages]
    num_characters = sum(len(turn["content"]) for turn in turns)
    tokenizer.check_can_fit(num_characters, max_tokens, param="messages")
    if num_characters > THREAD_CHARACTERS:
        return await asyncio.to_thread(tokenizer.encode_chat, turns)
    return tokenizer.encode_chat(turns)
