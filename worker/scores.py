"""Log probabilities of a sequence's tokens, as its request wants them told."""

from __future__ import annotations

import math

from ..shared.logprobs import pack_logprob, record_bytes
from ..shared.sampling_params import MAX_LOGPROBS, SamplingParams

NO_RECORD = pack_logprob(math.nan, (0,) * MAX_LOGPROBS, (math.nan,) * MAX_LOGPROBS)


class Scores:
    """The records of one sequence's tokens, in order, those of the prompt apart.

    `next_index` is the first token, counted from the prompt's first, that wants a record and has
    none; None when no token will. The first token of a prompt has no record: nothing predicts it.
    """

    def __init__(self, params: SamplingParams, num_prompt_tokens: int) -> None:
        self.prompt = bytearray()
        self.output = bytearray()
        self._num_top_prompt = params.num_prompt_logprobs
        self._num_top = params.num_logprobs
        self._num_prompt_tokens = num_prompt_tokens
        self.next_index = self._wanted_from(1)

    def num_top(self, index: int) -> int:
        """How many of the likeliest are told beside token `index`; -1 when it wants no record."""
        return self._num_top_prompt if index < self._num_prompt_tokens else self._num_top

    def due(self, num_computed_tokens: int, num_tokens: int, num_known_tokens: int) -> range:
        """The known tokens that are predicted at the next `num_tokens` positions."""
        if self.next_index is None:
            return range(0)
        end = min(num_computed_tokens + num_tokens + 1, num_known_tokens)
        if self._num_top < 0:
            end = min(end, self._num_prompt_tokens)
        return range(self.next_index, max(end, self.next_index))

    def take(self, index: int, record: bytes) -> None:
        """The record of token `index`, which is the next; another one's is not needed again."""
        if index != self.next_index:
            return
        if index < self._num_prompt_tokens:
            self.prompt += record
        else:
            self.output += record
        self.next_index = self._wanted_from(index + 1)

    def num_ready(self, num_output_tokens: int) -> int:
        """Output tokens that may be handed out: those that have what they want, and none before
        the prompt has."""
        if self.next_index is not None and self.next_index < self._num_prompt_tokens:
            return 0
        if self._num_top < 0:
            return num_output_tokens
        return min(num_output_tokens, len(self.output) // record_bytes(self._num_top))

    def of_output(self, start: int, end: int) -> bytes:
        """The records of output tokens `start` to `end`; of a request that ended before they were
        computed again, what is missing is no number."""
        if self._num_top < 0:
            return b""
        size = record_bytes(self._num_top)
        records = bytes(self.output[start * size : end * size])
        return records + NO_RECORD[:size] * (end - start - len(records) // size)

    @property
    def num_bytes(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def of_prompt(self) -> bytes:
        """The records of the prompt's tokens, once they are complete."""
        is_complete = self.next_index is None or self.next_index >= self._num_prompt_tokens
        return bytes(self.prompt) if is_complete else b""

    def _wanted_from(self, index: int) -> int | None:
        if self._num_top_prompt >= 0 and index < self._num_prompt_tokens:
            return index
        return max(index, self._num_prompt_tokens) if self._num_top >= 0 else None
