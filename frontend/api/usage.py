"""How many tokens an answer took."""

from __future__ import annotations

from ..results import Delta
from .answer_form import AnswerForm, Json


class Usage:
    """Counts tokens: a prompt once however many choices it has, all that was generated."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._num_output_tokens = 0
        self._num_cached_tokens = 0

    def add(self, index: int, delta: Delta) -> None:
        self.add_tokens(len(delta.token_ids))
        if delta.finish and index % self._form.n == 0:
            self._num_cached_tokens += delta.finish.num_cached_tokens

    def add_tokens(self, count: int) -> None:
        self._num_output_tokens += count

    def as_json(self) -> Json:
        num_prompt_tokens = self._form.num_prompt_tokens
        usage: Json = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_output_tokens,
            "total_tokens": num_prompt_tokens + self._num_output_tokens,
        }
        if self._form.tells_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self._num_cached_tokens}
        return usage
