"""Tells one choice of an answer: what its text says, and what is told of its tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from ...shared.tokenizer import Tokenizer
from ..replies.call_ids import CallIds
from ..replies.chunk import Chunk
from ..replies.reasoning_format import REASONING_FORMATS
from ..replies.reply import PlainReply, Reply
from ..replies.tool_format import TOOL_FORMATS
from ..response_id import ResponseId
from ..results import Delta
from .answer_form import AnswerForm, Json
from .shapes import SHAPES, Ending
from .tokens import ChatTeller, Ruler, Teller


class Heard(NamedTuple):
    """What a delta says."""

    chunk: Chunk
    ending: Ending | None
    told: Json | None  # of its tokens


class Listener:
    """Takes one choice's deltas from the first on, or all of them as one."""

    def __init__(
        self,
        index: int,
        form: AnswerForm,
        response_id: ResponseId,
        tokenizer: Tokenizer,
        prompt: list[int],
    ) -> None:
        tool_format = TOOL_FORMATS.get(form.tool_format)
        reasoning_format = REASONING_FORMATS.get(form.reasoning_format)
        self.call_ids = CallIds(response_id.of_choice(index), tool_format)
        self._reply: Reply | PlainReply = PlainReply()
        if tool_format or reasoning_format:
            self._reply = Reply(
                reasoning_format, tool_format, form.tool_names, is_reasoning=form.is_reasoning
            )
        self._teller: Teller | None = None
        if form.tells_tokens:
            kind = Teller if form.endpoint == "completions" else ChatTeller
            self._teller = kind(form, tokenizer, prompt)
        self._ruler = Ruler(form, tokenizer) if reasoning_format else None
        self._starts: list[int] = []  # of tokens that may be thoughts

    @property
    def num_reasoning_tokens(self) -> int:
        """Of a complete choice, or once its thoughts are over: those of them, with their tags."""
        return bisect_left(self._starts, self._reply.num_reasoning_characters)

    def hear(self, delta: Delta, num_known_tokens: int = 0, num_known_characters: int = 0) -> Heard:
        """Less what is known already."""
        told = None
        if self._teller and (delta.token_ids or delta.finish):
            told = self._teller.tell(delta.token_ids, delta.logprobs, num_known_tokens)
            if num_known_tokens >= len(delta.token_ids):
                told = None
        self._measure(delta.token_ids)
        if num_known_characters:
            self._reply.feed(delta.text[:num_known_characters])
        chunk = self._reply.feed(delta.text[num_known_characters:])
        ending = None
        if delta.finish:
            rest = self._reply.finish()
            ending = Ending(self._reply.finish_reason(delta.finish.reason), rest)
        return Heard(chunk, ending, told)

    def _measure(self, token_ids: list[int]) -> None:
        if self._ruler and not self._reply.num_reasoning_characters:
            self._starts += map(self._ruler.start, token_ids)


class Narrator(Listener):
    """Tells the choice as part of a chunk, or as a whole."""

    def __init__(
        self,
        index: int,
        form: AnswerForm,
        response_id: ResponseId,
        tokenizer: Tokenizer,
        prompt: list[int],
    ) -> None:
        super().__init__(index, form, response_id, tokenizer, prompt)
        self._shape = SHAPES[form.endpoint]
        self._writer = self._shape(index, self.call_ids)

    def openings(self) -> list[Json]:
        """Choices of the chunks that begin a stream."""
        return self._writer.openings()

    def tell_prompt(self, first: Delta) -> list[Json]:
        """Choices of the chunks that tell of the prompt, where that is part of the choice."""
        if self._teller is None or not self._shape.has_prompt_in_choice:
            return []
        text, told = self._teller.echo(first.prompt_logprobs)
        return self._writer.parts(Chunk(content=text), None, told | self._teller.prompt_ids())

    def tell(self, delta: Delta, num_known_tokens: int, num_known_characters: int) -> list[Json]:
        """Choices of the chunks for what of a delta its reader doesn't know."""
        return self._writer.parts(*self.hear(delta, num_known_tokens, num_known_characters))

    def whole(self, delta: Delta, number: int) -> Json:
        """The choice, as which number it is told; `delta` is all that came of it."""
        assert delta.finish, "it is complete"
        self._measure(delta.token_ids)
        chunk, told = self._reply.feed(delta.text) + self._reply.finish(), {}
        if self._teller:
            echo, before = self._teller.echo(delta.prompt_logprobs)
            chunk, told = (
                Chunk(content=echo) + chunk,
                self._teller.tell(delta.token_ids, delta.logprobs),
            )
            if "logprobs" in before:
                columns = told["logprobs"]
                told["logprobs"] = {k: v + columns[k] for k, v in before["logprobs"].items()}
            if self._shape.has_prompt_in_choice:
                told |= self.of_prompt(delta)
        reason = self._reply.finish_reason(delta.finish.reason)
        return self._shape(number, self.call_ids).whole(chunk, reason, told)

    def prompt_ids(self) -> Json:
        """If they were asked for, for a place beside the choices."""
        is_beside = self._teller is not None and not self._shape.has_prompt_in_choice
        return self._teller.prompt_ids() if self._teller and is_beside else {}

    def of_prompt(self, delta: Delta) -> Json:
        """What is told of the prompt besides its text."""
        if self._teller is None:
            return {}
        return self._teller.prompt_ids() | self._teller.prompt_logprobs(delta.prompt_logprobs)


def narrators(
    form: AnswerForm,
    response_id: ResponseId,
    tokenizer: Tokenizer,
    prompts: Mapping[int, list[int]],
) -> list[Narrator]:
    """One for each choice."""
    return [
        Narrator(index, form, response_id, tokenizer, prompts.get(index, []))
        for index in range(form.num_choices)
    ]
