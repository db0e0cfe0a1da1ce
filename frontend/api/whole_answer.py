"""An answer in one piece. Sans-IO: deltas in, a body out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from ...shared.logprobs import TokenLogprob
from ...shared.messages import Finish
from ..response_id import ResponseId
from ..results import Delta
from .answer_form import AnswerForm, Json
from .narrator import Narrator
from .shapes import SHAPES
from .tokens import finite
from .usage import Usage


class WholeAnswer:
    """Takes every choice's deltas from the first token on."""

    def __init__(
        self, response_id: ResponseId, form: AnswerForm, narrators: Sequence[Narrator]
    ) -> None:
        self._form = form
        self._head = form.head(response_id) | {"object": SHAPES[form.endpoint].object}
        self._narrators = narrators
        self._usage = Usage(response_id, form, narrators)
        self._wholes = [_Whole() for _ in range(form.num_choices)]

    @property
    def is_complete(self) -> bool:
        return all(whole.finish for whole in self._wholes)

    @property
    def num_tokens(self) -> int:
        """That there are to tell of."""
        return sum(len(one.token_ids) + len(one.prompt_logprobs) for one in self._wholes)

    def take(self, index: int, delta: Delta) -> None:
        self._usage.add(index, delta)
        self._wholes[index].add(delta)

    def body(self) -> bytes:
        """Of a complete answer."""
        choices = [self._choice(number, index) for number, index in enumerate(self._best())]
        answer = {**self._head, "choices": choices, "usage": self._usage.as_json()}
        if not SHAPES[self._form.endpoint].has_prompt_in_choice:
            answer |= self._narrators[0].of_prompt(self._wholes[0].delta)
        return orjson.dumps(answer)

    def _choice(self, number: int, index: int) -> Json:
        return self._narrators[index].whole(self._wholes[index].delta, number)

    def _best(self) -> list[int]:
        """The choices to tell, for each prompt the likeliest first if not all."""
        form, best = self._form, []
        if not form.num_best:
            return list(range(form.num_choices))
        for first in range(0, form.num_choices, form.n):
            candidates = range(first, first + form.n)
            best += heapq.nlargest(form.num_best, candidates, lambda i: self._wholes[i].mean)
        return best


@dataclass(slots=True)
class _Whole:
    """What came of one choice."""

    text: list[str] = field(default_factory=list)
    finish: Finish | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.finish = delta.finish

    @property
    def delta(self) -> Delta:
        text = "".join(self.text)
        return Delta(self.token_ids, text, self.finish, self.logprobs, self.prompt_logprobs)

    @property
    def mean(self) -> float:
        logprobs = [finite(one.logprob) for one in self.logprobs]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0
