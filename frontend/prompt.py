"""What a program may give the client as a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.errors import ContextLengthError, InvalidRequestError
from ..shared.messages import Greeting
from ..shared.tokenizer import Tokenizer

ChatMessage = Mapping[str, Any]  # role and content
Prompt = str | Sequence[int] | Sequence[ChatMessage]


def encode(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Its token ids."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if all(isinstance(item, int) for item in prompt):
        return list(prompt)  # type: ignore[arg-type]  # checked on the line above
    return tokenizer.encode_chat(prompt)  # type: ignore[arg-type]  # so it is messages


def check_fits(prompt_token_ids: list[int], max_tokens: int, worker: Greeting) -> None:
    """Raises InvalidRequestError or ContextLengthError for what this worker's model can't take."""
    if not prompt_token_ids:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < worker.vocab_size:
        raise InvalidRequestError(
            f"a token id of the prompt is outside the vocabulary of {worker.vocab_size}",
            param="prompt",
        )
    num_prompt_tokens = len(prompt_token_ids)
    if num_prompt_tokens + max_tokens > worker.max_model_len:
        raise ContextLengthError(
            f"{num_prompt_tokens} prompt tokens and up to {max_tokens} output tokens "
            f"are more than the {worker.max_model_len} that fit: shorten one of them"
        )
