"""Text that arrives in parts, read character by character with what is not settled yet kept."""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import TypeVar

SPACE = " \t\n\r"

T = TypeVar("T")
Reading = Generator[None, None, T]  # pauses where it needs text that has not come yet


class Tape:
    """What was read since the last `release` is held; what is ahead of `at` may still come."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0  # of what is ahead
        self._start = 0  # of what is held
        self._num_gone = 0  # characters before the text
        self._is_ended = False

    @property
    def num_read(self) -> int:
        """Characters, from the first."""
        return self._num_gone + self.at

    def add(self, text: str) -> None:
        self.text = self.text[self._start :] + text
        self._num_gone += self._start
        self.at -= self._start
        self._start = 0

    def end(self) -> None:
        self._is_ended = True

    @property
    def held(self) -> str:
        return self.text[self._start : self.at]

    def release(self) -> str:
        held = self.held
        self._start = self.at
        return held

    def peek(self) -> Reading[str]:
        """The next character, empty at the end."""
        while self.at == len(self.text):
            if self._is_ended:
                return ""
            yield
        return self.text[self.at]

    def read(self) -> None:
        self.read_to(self.at + 1)

    def read_to(self, at: int) -> None:
        """Holds the text up to there, or less than before."""
        self.at = at

    def read_space(self) -> Reading[None]:
        while (character := (yield from self.peek())) and character in SPACE:
            self.read()

    def drop_space(self) -> Reading[None]:
        yield from self.read_space()
        self.release()

    def read_one_of(self, words: Collection[str]) -> Reading[str]:
        """The word that follows, else nothing; then what might have become one is held."""
        found = ""
        while found not in words:
            character = yield from self.peek()
            if not character or not any(word.startswith(found + character) for word in words):
                return ""
            self.read()
            found += character
        return found
