"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct

from ..shared.errors import (
    ChairliftError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    RequestFailedError,
    RequestIdConflictError,
    StreamNotFoundError,
)
from ..shared.finishes import CONFLICT, NOT_FOUND, OUT_OF_TIME
from ..shared.logprobs import TokenLogprob
from ..shared.messages import Finish, FinishReason
from ..shared.queue_place import QueuePlace
from ..shared.steps import Receipt


class Delta(Struct, frozen=True, gc=False):
    """What a step added to one request; `text` never ends within a character. Before the first step
    it may tell where the request waits instead, if that is wanted."""

    token_ids: list[int]
    text: str
    finish: Finish | None = None  # of the last one
    logprobs: list[TokenLogprob] = []  # of the tokens, if wanted
    prompt_logprobs: list[TokenLogprob] = []  # less the first; once
    embedding: bytes = b""  # float32, little-endian; of the last one
    queue: QueuePlace | None = None  # then there is nothing else
    receipt: Receipt | None = None  # of the last one, unless it never ran

    def __add__(self, other: Delta) -> Delta:
        """This one, then the other."""
        return Delta(
            self.token_ids + other.token_ids,
            self.text + other.text,
            other.finish,
            self.logprobs + other.logprobs,
            self.prompt_logprobs or other.prompt_logprobs,
            other.embedding,
            other.queue,
            other.receipt,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    stop_reason: str | int | None = None  # the stop string or token id that ended it
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the tokens, if wanted
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # less the first
    receipt: Receipt | None = None  # how it fared among the others

    @classmethod
    def of(cls, whole: Delta, num_prompt_tokens: int) -> Completion:
        """From the sum of all Deltas."""
        finish = whole.finish or Finish("stop")
        return cls(
            text=whole.text,
            token_ids=whole.token_ids,
            finish_reason=finish.reason,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=finish.num_cached_tokens,
            stop_reason=finish.stop_reason,
            logprobs=whole.logprobs,
            prompt_logprobs=whole.prompt_logprobs,
            receipt=whole.receipt,
        )

    def __str__(self) -> str:
        return self.text


def exception_for(finish: Finish) -> ChairliftError | None:
    """The exception that this end deserves; None for a normal one."""
    if finish.reason in ("stop", "length"):
        return None
    if finish.code in ("overloaded", "queue_timeout", "draining", "shutting_down"):
        seconds = finish.retry_after_ms / 1000
        return OverloadedError(
            finish.message, retry_after_s=seconds, code=finish.code, queue=finish.queue
        )
    if finish.code == "context_length_exceeded":
        return ContextLengthError(finish.message)
    if finish.code == "invalid_request":
        return InvalidRequestError(finish.message)
    if finish.code == NOT_FOUND.code:
        return StreamNotFoundError(finish.message)
    if finish.code == CONFLICT.code:
        return RequestIdConflictError(finish.message)
    if finish.code == OUT_OF_TIME.code:
        return DeadlineExceededError(finish.message)
    return RequestFailedError(finish.message, code=finish.code)
