"""A place in an event stream: what its reader has, as the `id:` of its last event says.

Written `12:57.,3:10` for two choices: of the first, 12 tokens with 57 characters and its end; of
the second, three tokens. `-` is a choice of which nothing was sent, a final `!` says that the
usage was. Where events are numbered, `@9` says how many there were, and the position of the one
choice counts what `ResponseStream` does. To callers it is opaque.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...shared.errors import InvalidRequestError
from .answer_form import MAX_CHOICES

HEADER = "Last-Event-ID"
CHOICE = r"(?:-|[0-9]{1,9}:[0-9]{1,9}\.?)"
WRITTEN = re.compile(rf"({CHOICE}(?:,{CHOICE}){{0,{MAX_CHOICES - 1}}})(!?)(?:@([0-9]{{1,9}}))?")


@dataclass(frozen=True, slots=True)
class ChoicePosition:
    """How much of one choice was sent, the chunk that opens it included."""

    num_tokens: int = 0
    num_characters: int = 0
    is_finished: bool = False

    def __str__(self) -> str:
        return mark(self.num_tokens, self.num_characters, is_finished=self.is_finished)

    @classmethod
    def parse(cls, text: str) -> ChoicePosition | None:
        if text == "-":
            return None
        num_tokens, _, rest = text.partition(":")
        return cls(int(num_tokens), int(rest.rstrip(".")), rest.endswith("."))


@dataclass(frozen=True, slots=True)
class Position:
    """One entry for each choice, None for a choice not begun."""

    choices: tuple[ChoicePosition | None, ...]
    has_usage: bool = False
    num_events: int = 0  # where they are numbered

    @classmethod
    def start(cls, num_choices: int) -> Position:
        return cls((None,) * num_choices)

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises InvalidRequestError for what was never an event's id."""
        match = WRITTEN.fullmatch(text)
        if match is None:
            raise _bad("is no id of an event")
        choices = tuple(map(ChoicePosition.parse, match[1].split(",")))
        return cls(choices, bool(match[2]), int(match[3] or 0))

    def __str__(self) -> str:
        marks = ["-" if one is None else str(one) for one in self.choices]
        return written(marks, self.has_usage, self.num_events)

    def check_fits(self, num_choices: int, max_tokens: int | None = None) -> None:
        """Raises InvalidRequestError when the stream has more or fewer choices, or could never
        come so far."""
        if len(self.choices) != num_choices:
            raise _bad(f"has {len(self.choices)} choices, not the {num_choices}")
        if self.has_usage and not all(map(self.is_finished, range(num_choices))):
            raise never_was()
        if max_tokens and any(one.num_tokens > max_tokens for one in self.choices if one):
            raise never_was()

    def is_finished(self, index: int) -> bool:
        one = self.choices[index]
        return one is not None and one.is_finished


def mark(num_tokens: int, num_characters: int, *, is_finished: bool) -> str:
    """How one choice's position is written."""
    return f"{num_tokens}:{num_characters}{'.' if is_finished else ''}"


def written(choices: list[str], has_usage: bool, num_events: int = 0) -> str:
    number = f"@{num_events}" if num_events else ""
    return ",".join(choices) + ("!" if has_usage else "") + number


def never_was() -> InvalidRequestError:
    return _bad("was never the id of an event")


def _bad(reason: str) -> InvalidRequestError:
    message = (
        f"{HEADER} {reason} of this stream: send the id of the last event that you have, or "
        "none to begin at the start"
    )
    return InvalidRequestError(message, param=HEADER)
