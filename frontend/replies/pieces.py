"""Collects what an answer's text turns out to be, until it is taken."""

from __future__ import annotations

from .chunk import CallDelta, Chunk


class Pieces:
    """Since the last `take`; calls are counted from the answer's beginning."""

    def __init__(self) -> None:
        self.num_complete_calls = 0
        self._num_calls = 0
        self._clear()

    def think(self, text: str) -> None:
        self._keep(text, self._reasoning)

    def say(self, text: str) -> None:
        self._keep(text, self._content)
        self._num_said += len(text)

    def begin_call(self, name: str) -> None:
        self._names[self._num_calls] = name
        self._num_calls += 1
        self.pass_on("")

    def pass_on(self, arguments: str) -> None:
        """Some more of the newest call's."""
        newest = self._num_calls - 1
        self._keep(arguments, self._arguments.setdefault(newest, []))
        self._after.setdefault(newest, self._num_said)

    def complete_call(self) -> None:
        self.num_complete_calls += 1

    def take(self) -> Chunk:
        calls = [
            CallDelta(index, self._names.get(index), "".join(arguments), self._after[index])
            for index, arguments in self._arguments.items()
        ]
        chunk = Chunk("".join(self._reasoning), "".join(self._content), calls)
        self._clear()
        return chunk

    def _keep(self, text: str, parts: list[str]) -> None:
        if text:
            parts.append(text)

    def _clear(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._names: dict[int, str] = {}  # of the calls that begin
        self._arguments: dict[int, list[str]] = {}
        self._after: dict[int, int] = {}
        self._num_said = 0
