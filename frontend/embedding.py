"""Embeddings: how one is asked of the worker, and what comes back."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..shared.errors import InvalidRequestError, RequestFailedError
from ..shared.sampling_params import SamplingParams
from .results import Delta, exception_for
from .token_stream import TokenStream

EMBEDDING_PARAMS = SamplingParams(max_tokens=0)  # with others the worker refuses it


@dataclass(frozen=True, slots=True)
class Embedding:
    """What a prompt means: a vector of length 1, so that a scalar product is a cosine."""

    vector: array[float]  # float32
    num_prompt_tokens: int

    @classmethod
    def of(cls, last: Delta, num_prompt_tokens: int) -> Embedding:
        """From a request's last Delta; raises what `exception_for` gives for a failed one."""
        error = exception_for(last.finish) if last.finish else None
        if error is not None:
            raise error
        pooled = struct.unpack(f"<{len(last.embedding) // 4}f", last.embedding)
        return cls(_normalised(pooled), num_prompt_tokens)

    def shortened(self, dimensions: int) -> Embedding:
        """Its first ones, of length 1 again; raises InvalidRequestError if it has fewer."""
        if dimensions > len(self.vector):
            message = f"this model's embeddings have {len(self.vector)} dimensions: ask for no more"
            raise InvalidRequestError(message, param="dimensions")
        return replace(self, vector=_normalised(self.vector[:dimensions]))

    def to_bytes(self) -> bytes:
        """The vector in little-endian order."""
        return struct.pack(f"<{len(self.vector)}f", *self.vector)


async def last_of(stream: TokenStream) -> Delta:
    """Of an embedding's stream, which has nothing to tell before."""
    async for delta in stream:
        if delta.finish:
            return delta
    raise RequestFailedError("the stream broke off", code="incomplete")


def _normalised(vector: Iterable[float]) -> array[float]:
    """Nothing but zeros has no direction and stays as it is."""
    values = tuple(vector)
    length = math.hypot(*values) or 1.0
    return array("f", [value / length for value in values])
