"""An answer as server-sent events, from any position on. Sans-IO: deltas in, bytes out.

Reference: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from ...shared.queue_place import QueuePlace
from ..response_id import ResponseId
from ..results import Delta
from .answer_form import AnswerForm, Json
from .errors import answer_for
from .narrator import Narrator
from .position import ChoicePosition, Position, mark, never_was, written
from .shapes import SHAPES
from .usage import Usage

# A comment is one line. An empty one behind it is the end of an event without data to the official
# Python client, once it has seen an id; and it fails.
KEEP_ALIVE = b": keep-alive\n"
DONE = b"[DONE]"


def queue_comment(index: int, place: QueuePlace) -> bytes:
    """Where one choice waits; to whoever reads events alone it is nothing."""
    position, wait_ms = place.num_ahead, place.expected_wait_ms
    told = f": queue choice={index} position={position} expected_wait_ms={wait_ms}\n"
    return told.encode()


class Cursor:
    """One choice: what came of it, and what of that the reader has."""

    def __init__(self, held: ChoicePosition | None) -> None:
        self.has_begun = held is not None
        self.has_end = held is not None and held.is_finished
        self._num_held_tokens = held.num_tokens if held else 0
        self._num_held_characters = held.num_characters if held else 0
        self.num_tokens = 0
        self.num_characters = 0

    @property
    def is_behind(self) -> bool:
        """Whether not all came yet that the reader has."""
        return (
            self.num_tokens < self._num_held_tokens
            or self.num_characters < self._num_held_characters
        )

    def take(self, num_tokens: int, num_characters: int, *, is_last: bool) -> tuple[int, int]:
        """How many tokens and characters of these the reader has already.

        Raises InvalidRequestError when what it says to have can't be.
        """
        num_ahead_tokens = max(0, self._num_held_tokens - self.num_tokens)
        num_ahead_characters = max(0, self._num_held_characters - self.num_characters)
        self.num_tokens += num_tokens
        self.num_characters += num_characters
        has_more_text = num_characters > num_ahead_characters
        is_longer = has_more_text or self.num_tokens > self._num_held_tokens
        if (self.is_behind and (has_more_text or is_last)) or (self.has_end and is_longer):
            raise never_was()
        return num_ahead_tokens, num_ahead_characters

    def advance(self, *, is_finished: bool) -> str:
        """The reader gets all that came, the end too if it is finished: how to write that."""
        self.has_begun, self.has_end = True, is_finished
        self._num_held_tokens, self._num_held_characters = self.num_tokens, self.num_characters
        return mark(self.num_tokens, self.num_characters, is_finished=is_finished)

    def skip(self) -> None:
        """As if all had come that the reader has."""
        self.num_tokens, self.num_characters = self._num_held_tokens, self._num_held_characters


class EventStream:
    """Takes every choice's deltas from the first token on, and writes what comes after a position.

    However the deltas are cut, what was written up to an event's id and what is written after it
    make the whole answer, each part once.
    """

    def __init__(
        self,
        response_id: ResponseId,
        form: AnswerForm,
        narrators: Sequence[Narrator],
        after: Position | None = None,
    ) -> None:
        """Raises InvalidRequestError when `after` is of a stream with more or fewer choices. As
        does `write`, when what comes shows that `after` never was a place in this one."""
        after = after or Position.start(form.num_choices)
        after.check_fits(form.num_choices)
        if after.num_events:
            raise never_was()
        self._form = form
        self._head = form.head(response_id) | {"object": SHAPES[form.endpoint].chunk_object}
        self._cursors = [Cursor(held) for held in after.choices]
        self._narrators = narrators
        self._marks = ["-" if held is None else str(held) for held in after.choices]
        self._has_usage = after.has_usage
        self._usage = Usage(response_id, form, narrators)
        self._num_unfinished = form.num_choices

    @property
    def is_complete(self) -> bool:
        """Nothing more will come."""
        return self._num_unfinished == 0

    @property
    def is_behind(self) -> bool:
        """Whether not all came yet that the reader has, so `after` may prove wrong."""
        return any(cursor.is_behind for cursor in self._cursors)

    def openings(self) -> bytes:
        """The chunks that begin each choice."""
        events = []
        for index, cursor in enumerate(self._cursors):
            narrator = self._narrators[index]
            for choice in () if cursor.has_begun else narrator.openings():
                beside = {} if index else narrator.prompt_ids()
                events.append(self._chunk(index, choice, beside))
        return b"".join(events)

    def write(self, index: int, delta: Delta) -> bytes:
        """The events for one choice's news; the last of all brings usage and [DONE]."""
        cursor, narrator = self._cursors[index], self._narrators[index]
        self._usage.add(index, delta)
        events: list[bytes] = []
        if not cursor.num_tokens and (delta.token_ids or delta.finish):
            of_prompt = narrator.tell_prompt(delta)
            if not cursor.has_begun:
                events += [self._chunk(index, choice) for choice in of_prompt]
        num_tokens, num_characters = cursor.take(
            len(delta.token_ids), len(delta.text), is_last=delta.finish is not None
        )
        choices = narrator.tell(delta, num_tokens, num_characters)
        if not cursor.has_end:
            events += [self._chunk(index, choice) for choice in choices]
        if delta.finish:
            events.append(self._finish_one())
        return b"".join(events)

    def leave_out(self, index: int) -> bytes:
        """For a choice that is no longer kept, of which the reader has all."""
        cursor = self._cursors[index]
        assert cursor.has_end, "only what the reader has can be left out"
        cursor.skip()
        self._usage.add_untold(cursor.num_tokens)
        return self._finish_one()

    def fail(self, error: Exception, request_id: str) -> bytes:
        """The last event, instead of what would still come."""
        self._num_unfinished = 0
        return self._event(answer_for(error, request_id).body)

    def _chunk(self, index: int, choice: Json, beside: Json | None = None) -> bytes:
        is_finished = choice["finish_reason"] is not None
        self._marks[index] = self._cursors[index].advance(is_finished=is_finished)
        return self._data([choice], None, beside)

    def _finish_one(self) -> bytes:
        self._num_unfinished -= 1
        if self._num_unfinished:
            return b""
        usage = b""
        if self._form.has_usage and not self._has_usage:
            self._has_usage = True
            usage = self._data([], self._usage.as_json())
        return usage + self._event(DONE)

    def _data(self, choices: list[Json], usage: Json | None, beside: Json | None = None) -> bytes:
        chunk = {**self._head, "choices": choices}
        if beside:
            chunk.update(beside)
        if self._form.has_usage:
            chunk["usage"] = usage
        return self._event(orjson.dumps(chunk))

    def _event(self, data: bytes) -> bytes:
        position = written(self._marks, self._has_usage).encode()
        return b"id: " + position + b"\ndata: " + data + b"\n\n"
