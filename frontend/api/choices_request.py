"""What completions and chats take in besides: several answers, and their prompts told."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_LOGPROBS
from .generation_request import GenerationRequest, TokenCount
from .output_format import ConstrainedRequest
from .parameters import HAS_NO_EFFECT

MAX_N = 8


class StreamOptions(BaseModel):
    """Extras of a stream."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: Annotated[bool | None, Field(description="In a last chunk without choices.")] = (
        None
    )
    include_obfuscation: Annotated[
        bool | None, Field(description=HAS_NO_EFFECT)  # padding against traffic analysis
    ] = None


class ChoicesRequest(ConstrainedRequest, GenerationRequest):
    """What is answered with choices."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N, description="Answers for each prompt.")] = 1
    max_tokens: Annotated[TokenCount | None, Field(description="Without it, as many as fit.")] = (
        None
    )
    prompt_logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_LOGPROBS,
            description="Tell the prompt's log probabilities, and so many of the likeliest.",
        ),
    ] = None
    return_token_ids: Annotated[bool, Field(description="Tell the ids of prompt and answer.")] = (
        False
    )

    @model_validator(mode="after")
    def _is_no_stream_or_may_be_one(self) -> Self:
        if self.stream_options and not self.stream:
            message = "stream_options is for streams: set stream to true"
            raise InvalidRequestError(message, param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            message = "prompt_logprobs are not for streams: set stream to false"
            raise InvalidRequestError(message, param="prompt_logprobs")
        return self

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens

    @property
    def has_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_told(self) -> int:
        return self.n

    @property
    def returns_token_ids(self) -> bool:
        return self.return_token_ids

    @property
    def num_told_prompt_logprobs(self) -> int:
        return -1 if self.prompt_logprobs is None else self.prompt_logprobs
