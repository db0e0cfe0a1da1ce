"""An answer as the text that it is, for pipes and simple terminals."""

from __future__ import annotations

from typing import Self, TextIO

from ...shared.harmless import harmless
from ..replies.chunk import Chunk


class PlainAnswer:
    """Written as it comes, without thoughts; ends with a line feed."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._is_terminal = output.isatty()

    def add(self, chunk: Chunk) -> None:
        self._output.write(harmless(chunk.content) if self._is_terminal else chunk.content)
        self._output.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._output.write("\n")
        self._output.flush()
