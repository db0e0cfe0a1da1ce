"""The ids of an answer's tool calls: whoever goes on writing the answer finds the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .tool_format import ToolFormat

SHORT = 9  # characters; Mistral's templates refuse longer ones when they come back


@dataclass(frozen=True, slots=True)
class CallIds:
    """`base` is one choice's request id, which nobody else's answer has."""

    base: bytes
    tool_format: ToolFormat | None = None

    def __getitem__(self, number: int) -> str:
        digest = hashlib.sha256(self.base + b"call" + number.to_bytes(4, "big")).hexdigest()
        is_short = self.tool_format is not None and self.tool_format.has_short_ids
        return digest[:SHORT] if is_short else f"call_{digest[:24]}"
