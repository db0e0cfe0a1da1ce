"""What a prompt means, as one vector: hidden states pooled over its tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..shared.messages import Pooling


class Pool:
    """Collects the hidden states of one sequence's prompt, chunk by chunk.

    The `mean` needs every token computed here; for the `last`, what the prefix cache has is enough.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._sum: NDArray[np.float32] | None = None

    def add(self, start: int, hidden: NDArray[np.float32]) -> None:
        """Hidden states, float32 [num_tokens, hidden_size], of the tokens from `start` on; those of
        a sequence that was preempted come again, from the first on."""
        if self.pooling == "last":
            self._sum = hidden[-1]
            return
        total = hidden.sum(axis=0)
        self._sum = total if start == 0 or self._sum is None else self._sum + total

    @property
    def is_number(self) -> bool:
        return self._sum is not None and bool(np.isfinite(self._sum).all())

    def embedding(self, num_tokens: int) -> bytes:
        """Of so many tokens, float32 in little-endian order; empty when nothing was added."""
        if self._sum is None:
            return b""
        pooled = self._sum / num_tokens if self.pooling == "mean" else self._sum
        return bytes(pooled.astype("<f4").tobytes())
