"""What one rendering of a template may take: its budget, and how large results will be."""

from __future__ import annotations

import re
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_CPU_S = 1.0
# Of one value, and of the output; for each character of the input a multiple comes on top.
BASE_SIZE, SIZE_FACTOR = 1 << 20, 4
# Of all that is made on the way, most of which is let go again. A template may look at all messages
# for each of them, or collect them in one text, so the square of their number counts.
BASE_BYTES, MAX_BYTES = 32 << 20, 512 << 20
BYTES_FACTOR, PAIR_BYTES = 16, 128
ITEM_BYTES = 40  # a place in a list, and a small thing there
LOOK_BYTES = 8
MAX_INTEGER_BITS = 4096
MAX_INDENT = 16  # of JSON

VIEWS: Any = type({}.keys()) | type({}.values()) | type({}.items())
CONTAINERS: Any = list | tuple | dict | set | frozenset | VIEWS


class TemplateLimitError(Exception):
    """The template takes too much; not caught by anything in Jinja."""


class Budget:
    """What one rendering may still take. A container is weighed by the text it would print as."""

    def __init__(self, num_characters: int = 0, num_messages: int = 0) -> None:
        """For an input of this size: the limits grow with it."""
        self._max_size = BASE_SIZE + SIZE_FACTOR * num_characters
        each = BYTES_FACTOR * num_characters
        pairs = num_messages * (num_characters + PAIR_BYTES * num_messages)
        self._bytes_left = min(BASE_BYTES + each + pairs, MAX_BYTES)
        self._deadline = time.thread_time() + MAX_CPU_S
        self._weighed: dict[int, tuple[Any, int]] = {}  # holds them, so that no id comes again

    def spend(self, num_bytes: int) -> None:
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise TemplateLimitError("it takes too much memory")
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes more than {MAX_CPU_S:g} s")

    def check_size(self, size: int) -> None:
        """Of a value that is there, or is about to be."""
        if size > self._max_size:
            raise TemplateLimitError(f"it makes more than {self._max_size} characters")

    def take(self, value: Any) -> Any:
        """The value, paid for; what yields its items one by one pays when it does."""
        if isinstance(value, CONTAINERS):
            self.weigh(value)
            self.spend(ITEM_BYTES * len(value))
        elif isinstance(value, Iterator):
            return map(self.take, value)
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise TemplateLimitError(f"it makes a number of more than {MAX_INTEGER_BITS} bits")
        else:
            self.check_size(len(value) if isinstance(value, str | bytes) else 0)
            self.spend(sys.getsizeof(value))
        return value

    def look_at(self, value: Any) -> Any:
        """The value, which was paid for when it was made; looking takes time."""
        self.spend(LOOK_BYTES)
        return value

    def weigh(self, value: Any) -> int:
        if not isinstance(value, CONTAINERS):
            return len(value) + 2 if isinstance(value, str | bytes) else 8
        if id(value) not in self._weighed:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            weight = 2 + sum(map(self.weigh, parts))
            self.check_size(weight)
            self._weighed[id(value)] = value, weight
        return self._weighed[id(value)][1]


def size_of_operation(budget: Budget, operator: str, left: Any, right: Any) -> int:
    match operator, left, right:
        case "*", int(), str() | bytes() | list() | tuple():
            return left * len(right)
        case "*", str() | bytes() | list() | tuple(), int():
            return len(left) * right
        case "**", int(), int():
            return left.bit_length() * right
        case "%", str(), dict():
            return _size_of_printf(budget, left, *right.values())
        case "%", str(), tuple():
            return _size_of_printf(budget, left, *right)
        case "%", str(), _:
            return _size_of_printf(budget, left, right)
    return 0


def _size_of_printf(budget: Budget, text: Any, *args: Any, **kwargs: Any) -> int:
    if COMPUTED_WIDTH.search(str(text)):
        raise TemplateLimitError("it computes the width of a field")
    widths = sum(int(digits) for pair in WIDTHS.findall(str(text)) for digits in pair if digits)
    num_fields = str(text).count("%")
    return len(str(text)) + widths + num_fields * _heaviest(budget, *args, *kwargs.values())


def _size_of_format(budget: Budget, text: str, *args: Any, **kwargs: Any) -> int:
    size = len(text)
    heaviest = _heaviest(budget, *args, *kwargs.values())
    for _, _, width, _ in string.Formatter().parse(text):
        if "{" in (width or ""):
            raise TemplateLimitError("it computes the width of a field")
        size += heaviest + sum(map(int, re.findall(r"\d+", width or "")))
    return size


def _heaviest(budget: Budget, *values: Any) -> int:
    return max(map(budget.weigh, values), default=0)


def _size_of_padded(budget: Budget, text: Any, width: int = 80, *_: Any) -> int:
    return max(budget.weigh(text), width)


def _size_of_untabbed(budget: Budget, text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


def _size_of_indented(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    step = width if isinstance(width, int) else len(str(width))
    return budget.weigh(text) + str(text).count("\n") * step


def _size_of_replaced(budget: Budget, text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    budget.weigh(text)
    return len(str(text)) + str(text).count(str(old)) * budget.weigh(new)


def _size_of_joined(budget: Budget, value: Any, other: Any = "", *_: Any, **kwargs: Any) -> int:
    items, separator = (
        (value, kwargs.get("d", other)) if isinstance(value, list) else (other, value)
    )
    return budget.weigh(items) + len(items) * budget.weigh(separator)


def _size_of_batch(budget: Budget, value: Any, linecount: int, fill_with: Any = None) -> int:
    return linecount * ITEM_BYTES if fill_with is not None else 0


COMPUTED_WIDTH = re.compile(r"[%)][#0\- +.\d]*\*")
WIDTHS = re.compile(r"[%)][#0\- +]*(\d+)?(?:\.(\d+))?")
SIZES: Mapping[str, Callable[..., int]] = {
    "batch": _size_of_batch,
    "format": _size_of_printf,
    "indent": _size_of_indented,
    "join": _size_of_joined,
    "replace": _size_of_replaced,
    **dict.fromkeys(("center", ".center", ".ljust", ".rjust", ".zfill"), _size_of_padded),
    ".expandtabs": _size_of_untabbed,
    ".format": _size_of_format,
    ".join": _size_of_joined,
    ".replace": _size_of_replaced,
}
