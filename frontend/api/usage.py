"""How many tokens an answer took."""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.logs import short_hash
from ...shared.steps import Receipt
from ..response_id import ResponseId
from ..results import Delta
from .answer_form import AnswerForm, Json
from .narrator import Listener
from .receipts import receipt_json


class Usage:
    """Counts tokens: a prompt once however many choices it has, all that was generated."""

    def __init__(
        self, response_id: ResponseId, form: AnswerForm, listeners: Sequence[Listener]
    ) -> None:
        self._response_id = response_id
        self._form = form
        self._listeners = listeners
        self._num_output_tokens = 0
        self._num_cached_tokens = 0
        self._receipts: dict[int, Receipt] = {}
        self._has_untold = False

    def add(self, index: int, delta: Delta) -> None:
        self._num_output_tokens += len(delta.token_ids)
        if delta.finish and index % self._form.n == 0:
            self._num_cached_tokens += delta.finish.num_cached_tokens
        if delta.receipt is not None:
            self._receipts[index] = delta.receipt

    def add_untold(self, num_tokens: int) -> None:
        """Those of a choice that nobody listened to."""
        self._num_output_tokens += num_tokens
        self._has_untold = True

    @property
    def num_reasoning_tokens(self) -> int:
        return sum(one.num_reasoning_tokens for one in self._listeners)

    def as_json(self) -> Json:
        """Of a complete answer."""
        num_prompt_tokens = self._form.num_prompt_tokens
        usage: Json = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_output_tokens,
            "total_tokens": num_prompt_tokens + self._num_output_tokens,
        }
        if self._form.tells_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self._num_cached_tokens}
        if self._form.reasoning_format and not self._has_untold:
            num_reasoning = self.num_reasoning_tokens
            usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
        return usage | self._receipt()

    def of_response(self) -> Json:
        """Of a complete response, where every number has to be there."""
        num_cached = self._num_cached_tokens if self._form.tells_cached else 0
        num_input_tokens = self._form.num_prompt_tokens
        return {
            "input_tokens": num_input_tokens,
            "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": 0},
            "output_tokens": self._num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.num_reasoning_tokens},
            "total_tokens": num_input_tokens + self._num_output_tokens,
            **self._receipt(),
        }

    def _receipt(self) -> Json:
        """One for each choice that was generated, if they are wanted."""
        if not self._form.has_receipt:
            return {}
        of_choice = self._response_id.of_choice
        told = [
            receipt_json(
                short_hash(of_choice(index)), receipt, tells_cached=self._form.tells_cached
            )
            for index, receipt in sorted(self._receipts.items())
        ]
        return {"receipt": told}
