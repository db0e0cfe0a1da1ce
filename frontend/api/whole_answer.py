"""An answer in one piece. Sans-IO: deltas in, a body out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from ...shared.logprobs import TokenLogprob
from ..results import Delta
from .answer_form import AnswerForm, Json
from .response_id import ResponseId
from .shapes import SHAPES
from .tokens import Teller, finite
from .usage import Usage


class WholeAnswer:
    """Takes every choice's deltas from the first token on."""

    def __init__(
        self, response_id: ResponseId, form: AnswerForm, tellers: Sequence[Teller] = ()
    ) -> None:
        self._form = form
        self._shape = SHAPES[form.endpoint]
        self._head = form.head(response_id) | {"object": self._shape.object}
        self._tellers = tellers
        self._usage = Usage(form)
        self._wholes = [_Whole() for _ in range(form.num_choices)]

    @property
    def is_complete(self) -> bool:
        return all(whole.reason for whole in self._wholes)

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
        if self._tellers and not self._shape.has_prompt_in_choice:
            answer |= self._of_prompt(0)
        return orjson.dumps(answer)

    def _choice(self, number: int, index: int) -> Json:
        whole = self._wholes[index]
        text, told = whole.text, {}
        if self._tellers:
            teller = self._tellers[index]
            echo, before = teller.echo(whole.prompt_logprobs)
            text, told = echo + text, teller.tell(whole.token_ids, whole.logprobs)
            if "logprobs" in before:
                columns = told["logprobs"]
                told["logprobs"] = {k: v + columns[k] for k, v in before["logprobs"].items()}
            if self._shape.has_prompt_in_choice:
                told |= self._of_prompt(index)
        return self._shape.whole(number, text, whole.reason, told)

    def _of_prompt(self, index: int) -> Json:
        teller = self._tellers[index]
        return teller.prompt_ids() | teller.prompt_logprobs(self._wholes[index].prompt_logprobs)

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

    text: str = ""
    reason: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        if delta.finish:
            self.reason = delta.finish.reason

    @property
    def mean(self) -> float:
        logprobs = [finite(one.logprob) for one in self.logprobs]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0
