"""Frontends' messages to the engine: decoded, checked again, carried out. Sans-IO.

Trusts no frontend: what is malformed is counted and dropped, what can't be served is refused with
the reason, and neither touches anybody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from ..shared.codec import decode_request
from ..shared.errors import ProtocolError
from ..shared.logs import short_hash
from ..shared.messages import Cancel, Finish, Submit, Sync, unpack_token_ids
from ..shared.tokenizer import Tokenizer
from .detokenizer import Detokenizer
from .engine import Engine
from .publisher import Publisher
from .sequence import Sequence

log = structlog.get_logger(__name__)

COMPLAINT_INTERVAL_S = 1.0
CANCELLED = Finish("abort", code="cancelled", message="cancelled by the client")


@dataclass(frozen=True, slots=True)
class Limits:
    """What this worker can take on."""

    vocab_size: int
    max_model_len: int  # which the KV cache can hold at least once
    max_waiting: int


class Intake:
    """Turns messages into calls on engine and publisher, which it does not own."""

    def __init__(
        self, engine: Engine, publisher: Publisher, tokenizer: Tokenizer, limits: Limits
    ) -> None:
        self.num_malformed = 0
        self._last_complaint = float("-inf")
        self._engine = engine
        self._publisher = publisher
        self._tokenizer = tokenizer
        self._fingerprint = tokenizer.fingerprint
        self._limits = limits

    @property
    def max_waiting(self) -> int:
        return self._limits.max_waiting

    def receive(self, messages: Iterable[bytes], now: float) -> None:
        for data in messages:
            try:
                self._dispatch(decode_request(data), now)
            except (ProtocolError, ValueError) as error:
                self._complain(error, now)

    def _complain(self, error: Exception, now: float) -> None:
        """Once a second: whoever sends garbage must not fill the log as well."""
        self.num_malformed += 1
        if now - self._last_complaint >= COMPLAINT_INTERVAL_S:
            self._last_complaint = now
            log.warning("malformed message dropped", why=str(error), so_far=self.num_malformed)

    def _dispatch(self, message: Submit | Cancel | Sync, now: float) -> None:
        self._publisher.heard(message.frontend_id, now)
        if isinstance(message, Submit):
            self._submit(message, now)
        elif isinstance(message, Cancel):
            self._cancel(message)
        else:
            for sequence in self._publisher.sync(message, now):
                self._engine.end(sequence, CANCELLED)

    def _submit(self, submit: Submit, now: float) -> None:
        """The same id twice is one request."""
        if self._publisher.find(submit.request_id) is not None:
            return
        sequence = self._sequence(submit)
        sequence.finish = self._refusal(submit, sequence)
        if sequence.finish is None:
            self._engine.add(sequence, unpack_token_ids(submit.output_token_ids))
        self._publisher.open(submit.frontend_id, sequence, now)
        log.debug(
            "request",
            request=short_hash(submit.request_id),
            num_prompt_tokens=sequence.num_prompt_tokens,
            finish=sequence.finish,
        )

    def _sequence(self, submit: Submit) -> Sequence:
        prompt = unpack_token_ids(submit.prompt_token_ids)
        detokenizer = Detokenizer(self._tokenizer.backend, prompt, submit.params.stop)
        return Sequence(submit.request_id, prompt, submit.params, detokenizer)

    def _cancel(self, cancel: Cancel) -> None:
        sequence = self._publisher.close(cancel.frontend_id, cancel.request_id)
        if sequence is not None:
            self._engine.end(sequence, CANCELLED)

    def _refusal(self, submit: Submit, sequence: Sequence) -> Finish | None:
        """Why the request can't be served, or None."""
        limits, params = self._limits, submit.params
        if submit.tokenizer != self._fingerprint:
            return _error(
                "tokenizer_mismatch",
                "the request was encoded with another tokenizer than this worker's: connect again",
            )
        token_ids = [*sequence.token_ids, *unpack_token_ids(submit.output_token_ids)]
        token_ids += [token_id for token_id, _ in params.logit_bias]
        token_ids += params.stop_token_ids
        if max(token_ids) >= limits.vocab_size:
            return _error(
                "invalid_request",
                f"token id {max(token_ids)} is outside the vocabulary of {limits.vocab_size}",
            )
        if sequence.max_num_tokens > limits.max_model_len:
            return _error(
                "context_length_exceeded",
                f"{sequence.num_prompt_tokens} prompt tokens and up to {params.max_tokens} output "
                f"tokens are more than the {limits.max_model_len} that fit: shorten one of them",
            )
        return None if submit.output_token_ids else self._overload()

    def _overload(self) -> Finish | None:
        """Only for new requests: one that is resumed was taken on before."""
        if self._publisher.state == "draining":
            return _error("draining", "the worker is shutting down", retry_after_ms=5_000)
        scheduler = self._engine.scheduler
        if len(scheduler.waiting) >= self._limits.max_waiting:
            return _error(
                "overloaded",
                f"{len(scheduler.waiting)} requests are waiting already, which is the limit",
                retry_after_ms=self._engine.estimated_wait_ms(),
            )
        return None


def _error(code: str, message: str, *, retry_after_ms: int = 0) -> Finish:
    return Finish("error", code=code, message=message, retry_after_ms=retry_after_ms)
