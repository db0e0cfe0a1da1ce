"""Which requests a worker takes on."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.logprobs import record_bytes
from ..shared.messages import Finish, Submit, unpack_token_ids
from ..shared.queue_place import QueuePlace
from ..shared.sampling_params import SamplingParams
from .engine import Engine
from .quarantine import Quarantine

MAX_RESUMED = 4096  # beyond max_waiting
MAX_PROMPT_SCORE_BYTES = 8 << 20  # of one request: they go out in one piece


@dataclass(frozen=True, slots=True)
class Limits:
    """What this worker can take on, and for how long it keeps it waiting."""

    vocab_size: int
    max_model_len: int  # which the KV cache can hold at least once
    max_waiting: int
    max_waiting_tokens: int = 1 << 20
    queue_timeout_s: float = 60.0


class Admission:
    """Says of a request why it can't run here, in its caller's terms. Changes nothing."""

    def __init__(
        self, limits: Limits, tokenizer: bytes, quarantine: Quarantine | None = None
    ) -> None:
        """`tokenizer` is the fingerprint of the worker's."""
        self.limits = limits
        self._tokenizer = tokenizer
        self._quarantine = quarantine or Quarantine()

    def is_suspect(self, request_id: bytes) -> bool:
        """Whether it was in a step that killed the worker, and has to run alone first."""
        return self._quarantine.is_suspect(request_id)

    def refusal(self, submit: Submit) -> Finish | None:
        """Why the request can never be served, or None."""
        if self._quarantine.is_condemned(submit.request_id):
            return failure(
                "worker_crashed_on_request",
                "the worker died of this request, twice: don't send it again as it is",
            )
        if submit.tokenizer != self._tokenizer:
            return failure(
                "tokenizer_mismatch",
                "the request was encoded with another tokenizer than this worker's: connect again",
            )
        return self._too_long(submit) or self._unknown_token(submit) or _contradiction(submit)

    def overload(self, submit: Submit, engine: Engine) -> Finish | None:
        """Why the request can't be served now, or None. One that waits alone never is too long;
        one that is resumed was taken on before, and finds room where a new one doesn't."""
        limits, scheduler = self.limits, engine.scheduler
        num_waiting = scheduler.num_waiting + engine.num_compiling
        num_tokens = scheduler.num_waiting_tokens
        num_prompt_tokens = len(submit.prompt_token_ids) // 4
        if submit.output_token_ids and num_waiting < limits.max_waiting + MAX_RESUMED:
            return None
        if num_waiting >= limits.max_waiting:
            queue = f"{num_waiting} requests are waiting already"
        elif num_waiting and num_tokens + num_prompt_tokens > limits.max_waiting_tokens:
            queue = f"requests with {num_tokens} tokens are waiting already"
        else:
            return None
        place = QueuePlace(num_waiting, engine.estimated_wait_ms(num_waiting))
        message = f"{queue}, which takes about {in_seconds(place)}: try again later"
        return failure("overloaded", message, place.expected_wait_ms, place)

    def _unknown_token(self, submit: Submit) -> Finish | None:
        params, vocab_size = submit.params, self.limits.vocab_size
        token_ids = unpack_token_ids(submit.prompt_token_ids + submit.output_token_ids)
        token_ids += [token_id for token_id, _ in params.logit_bias]
        token_ids += params.stop_token_ids
        token_ids += [token_id for word in params.bad_words for token_id in word]
        if max(token_ids) < vocab_size:
            return None
        message = f"token id {max(token_ids)} is outside the vocabulary of {vocab_size}"
        return failure("invalid_request", message)

    def _too_long(self, submit: Submit) -> Finish | None:
        """Looked at first: it costs nothing, whatever the size."""
        max_model_len, max_tokens = self.limits.max_model_len, submit.params.max_tokens
        num_prompt_tokens = len(submit.prompt_token_ids) // 4
        num_output_tokens = len(submit.output_token_ids) // 4
        if num_output_tokens > max_tokens:
            message = f"{num_output_tokens} output tokens are more than the {max_tokens} asked for"
            return failure("invalid_request", message)
        if num_prompt_tokens + max_tokens <= max_model_len:
            return None
        return failure(
            "context_length_exceeded",
            f"{num_prompt_tokens} prompt tokens and up to {max_tokens} output tokens are more "
            f"than the {max_model_len} that fit: shorten one of them",
        )


def _contradiction(submit: Submit) -> Finish | None:
    """What asks for nothing, or for more than can be told."""
    params, wants_embedding = submit.params, bool(submit.pooling)
    if params.contradiction:
        return failure("invalid_request", params.contradiction)
    if wants_embedding and params != SamplingParams(max_tokens=0):
        message = "an embedding takes max_tokens 0 and no other sampling parameter"
        return failure("invalid_request", message)
    if not params.max_tokens and not wants_embedding and params.num_prompt_logprobs < 0:
        message = "max_tokens 0 asks for nothing: ask for prompt logprobs, or for tokens"
        return failure("invalid_request", message)
    num_prompt_tokens = len(submit.prompt_token_ids) // 4
    size = num_prompt_tokens * record_bytes(max(params.num_prompt_logprobs, 0))
    if params.num_prompt_logprobs >= 0 and size > MAX_PROMPT_SCORE_BYTES:
        message = (
            f"{params.num_prompt_logprobs} prompt logprobs of {num_prompt_tokens} tokens are too "
            "many: shorten the prompt, or ask for fewer"
        )
        return failure("invalid_request", message)
    return None


def in_seconds(place: QueuePlace) -> str:
    return f"{place.expected_wait_ms / 1000:.0f} s"


def failure(
    code: str, message: str, retry_after_ms: int = 0, queue: QueuePlace | None = None
) -> Finish:
    return Finish("error", code=code, message=message, retry_after_ms=retry_after_ms, queue=queue)
