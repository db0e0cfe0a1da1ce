"""POST /tokenize and /detokenize: how a text or a conversation becomes tokens, and back.

Spelled as vLLM does: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ...shared.errors import InvalidRequestError
from ...shared.messages import MAX_PROMPT_TOKENS
from ...shared.tokenizer import Tokenizer
from .answer import THREAD_TOKENS
from .body import read_json, validated
from .context import THREAD_CHARACTERS, Context, in_thread_if
from .generation_request import TokenId, check_ids
from .messages import Messages
from .request_body import RequestBody
from .schema import documented
from .sending import json_answer


class TokenizeRequest(RequestBody):
    """POST /tokenize: a prompt, as completions take it, or messages, as chats do."""

    prompt: str | None = None
    add_special_tokens: Annotated[
        bool | None, Field(description="Around a prompt; true unless said otherwise.")
    ] = None
    messages: Messages | None = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="After the messages; true unless said otherwise.")
    ] = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("give either a prompt or messages", param="prompt")
        if self.messages is None and self.add_generation_prompt is not None:
            message = "add_generation_prompt goes with messages: leave it out"
            raise InvalidRequestError(message, param="add_generation_prompt")
        if self.prompt is None and self.add_special_tokens:
            message = "add_special_tokens goes with a prompt: a chat's come from the template"
            raise InvalidRequestError(message, param="add_special_tokens")
        return self

    @property
    def num_characters(self) -> int:
        return len(self.prompt or "") + sum(one.num_characters for one in self.messages or ())

    def encoded(self, tokenizer: Tokenizer) -> list[int]:
        """Raises InvalidRequestError when the template refuses the messages."""
        if self.messages is None:
            is_bare = self.add_special_tokens is False
            return tokenizer.encode(self.prompt or "", add_special_tokens=not is_bare)
        turns = [message.for_template() for message in self.messages]
        is_open = self.add_generation_prompt is not False
        return tokenizer.encode_chat(turns, add_generation_prompt=is_open)


class DetokenizeRequest(RequestBody):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_PROMPT_TOKENS)]


def tokenize_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize", **documented(TokenizeRequest, generates=False))
    async def tokenize(request: Request) -> Response:
        """Say which tokens the model would read."""
        asked = validated(TokenizeRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        tokenizer, max_model_len = served.tokenizer, served.greeting.max_model_len
        num_characters = asked.num_characters
        param = "prompt" if asked.messages is None else "messages"
        tokenizer.check_can_fit(num_characters, max_model_len, param=param)
        tokens = await in_thread_if(num_characters > THREAD_CHARACTERS, asked.encoded, tokenizer)
        answer = {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens}
        if asked.return_token_strs:
            answer["token_strs"] = [tokenizer.backend.id_to_token(token_id) for token_id in tokens]
        return json_answer(answer)

    @router.post("/detokenize", **documented(DetokenizeRequest, generates=False))
    async def detokenize(request: Request) -> Response:
        """Say what tokens spell, special ones by their names."""
        asked = validated(DetokenizeRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        check_ids("tokens", asked.tokens, served.greeting.vocab_size)
        is_long = len(asked.tokens) > THREAD_TOKENS
        text = await in_thread_if(is_long, served.tokenizer.text_of, asked.tokens)
        return json_answer({"prompt": text})

    return router
