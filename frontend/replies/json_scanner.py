"""Follows one JSON value as it arrives (RFC 8259): where it ends, or where it stops being JSON."""

from __future__ import annotations

import re
from collections.abc import Callable

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # of a string
_NOTHING = re.compile("")
_DIGITS = "0123456789"
_NUMBER = {  # of each part of a number the parts that may follow
    "minus": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", "e": "e", "E": "e"},
    "integer": {".": "point", "e": "e", "E": "e", **dict.fromkeys(_DIGITS, "integer")},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {"e": "e", "E": "e", **dict.fromkeys(_DIGITS, "fraction")},
    "e": {**dict.fromkeys("+-", "sign"), **dict.fromkeys(_DIGITS, "exponent")},
    "sign": dict.fromkeys(_DIGITS, "exponent"),
    "exponent": dict.fromkeys(_DIGITS, "exponent"),
}
_FIRST_OF_NUMBER = {"-": "minus", **_NUMBER["minus"]}
_WHOLE_NUMBER = {"zero", "integer", "fraction", "exponent"}
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """The value is an object, an array or a string: those tell where they end.

    Each state is a method that takes a character, or refuses it; before it comes what the state
    skips.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._brackets: list[str] = []  # that are still to come
        self._is_key = False  # the string
        self._part = ""  # of a number
        self._rest = ""  # of a literal or an escape
        self._go(self._value, _SPACE)

    def take(self, text: str, at: int) -> int:
        """From there, the end of what goes on with the value or ends it."""
        while not self.is_complete:
            skipped = self._skipped.match(text, at)
            at = skipped.end() if skipped else at
            if at == len(text):
                break
            if not self._take(text[at]):
                self._go(self._refuse)
                break
            at += 1
        return at

    def _go(
        self, state: Callable[[str], bool], skipped: re.Pattern[str] = _NOTHING, is_ok: bool = True
    ) -> bool:
        self._take, self._skipped = state, skipped
        return is_ok

    def _refuse(self, c: str) -> bool:
        return False

    def _value(self, c: str) -> bool:
        if c == '"':
            self._is_key = False
            return self._go(self._string, _PLAIN)
        if c in "{[":
            self._brackets.append("}" if c == "{" else "]")
            return self._go(self._first_key if c == "{" else self._first_item, _SPACE)
        if c in _LITERALS:
            self._rest = _LITERALS[c]
            return self._go(self._literal)
        self._part = _FIRST_OF_NUMBER.get(c, "")
        return self._go(self._number, is_ok=bool(self._part))

    def _first_item(self, c: str) -> bool:
        return self._close(c) if c == "]" else self._value(c)

    def _first_key(self, c: str) -> bool:
        return self._close(c) if c == "}" else self._key(c)

    def _key(self, c: str) -> bool:
        self._is_key = True
        return self._go(self._string, _PLAIN, c == '"')

    def _colon(self, c: str) -> bool:
        return self._go(self._value, _SPACE, c == ":")

    def _string(self, c: str) -> bool:
        if c == '"':
            return self._go(self._colon, _SPACE) if self._is_key else self._end_value()
        return self._go(self._escape, is_ok=c == "\\")

    def _escape(self, c: str) -> bool:
        if c == "u":
            self._rest = "hex."
            return self._go(self._hex)
        return self._go(self._string, _PLAIN, c in '"\\/bfnrt')

    def _hex(self, c: str) -> bool:
        self._rest = self._rest[1:]
        if not self._rest:
            self._go(self._string, _PLAIN)
        return c in "0123456789abcdefABCDEF"

    def _number(self, c: str) -> bool:
        is_whole = self._part in _WHOLE_NUMBER
        self._part = _NUMBER[self._part].get(c, "")
        if self._part:
            return True
        self._go(self._after, _SPACE)
        return is_whole and (c in " \t\n\r" or self._after(c))

    def _literal(self, c: str) -> bool:
        is_ok = c == self._rest[0]
        self._rest = self._rest[1:]
        return is_ok and (bool(self._rest) or self._end_value())

    def _after(self, c: str) -> bool:
        if c != ",":
            return self._close(c)
        return self._go(self._key if self._brackets[-1] == "}" else self._value, _SPACE)

    def _close(self, c: str) -> bool:
        return c == self._brackets.pop() and self._end_value()

    def _end_value(self) -> bool:
        self.is_complete = not self._brackets
        return self._go(self._after, _SPACE)
