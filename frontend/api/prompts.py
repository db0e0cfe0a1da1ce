"""Raw prompts, as completions and embeddings take them: one or several, texts or token ids."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import Field

from ...shared.messages import MAX_PROMPT_TOKENS
from .context import THREAD_CHARACTERS, Served, in_thread_if
from .generation_request import TokenId, check_ids

MAX_PROMPTS = 128

TokenPrompt = Annotated[
    list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)
]
Prompts = (
    str
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    | TokenPrompt
    | Annotated[list[TokenPrompt], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
)


async def encoded(given: Prompts, served: Served, *, param: str) -> list[list[int]]:
    """The token ids of each, in a thread when it would hold up other streams.

    Raises ContextLengthError, before that, when a text can't fit, and InvalidRequestError for an id
    that the model has no token for.
    """
    prompts, greeting, tokenizer = _one_form(given), served.greeting, served.tokenizer

    def encode() -> list[list[int]]:
        return [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]

    lengths = [len(prompt) for prompt in prompts if isinstance(prompt, str)]
    tokenizer.check_can_fit(max(lengths, default=0), greeting.max_model_len, param=param)
    is_long = sum(lengths) > THREAD_CHARACTERS
    token_ids = await in_thread_if(is_long, encode)
    check_ids(param, (max(prompt, default=0) for prompt in token_ids), greeting.vocab_size)
    return token_ids


def _one_form(given: Prompts) -> list[str] | list[list[int]]:
    """A list of token ids is one prompt."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return cast(list[list[int]], [given])
    return cast(list[str] | list[list[int]], given)
