"""Log probabilities on the wire: one record of fixed size for each token."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found one token (natural logarithm), and what it found likeliest.

    Of the model's own logits: before temperature, penalties, biases and masks.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), descending


def record_bytes(num_top: int) -> int:
    """A float32 for the token, a u32 and a float32 for each of the likeliest."""
    return 4 + 8 * num_top


def pack_logprob(logprob: float, top_ids: Sequence[int], top_logprobs: Sequence[float]) -> bytes:
    pairs = [part for pair in zip(top_ids, top_logprobs, strict=True) for part in pair]
    return struct.pack("<f" + "If" * len(top_ids), logprob, *pairs)


def unpack_logprobs(packed: bytes, num_top: int) -> list[TokenLogprob]:
    """Raises ValueError when the length is no whole number of records."""
    size = record_bytes(num_top)
    if len(packed) % size:
        raise ValueError(f"log probabilities come in records of {size} bytes")
    return list(map(_token_logprob, struct.iter_unpack("<f" + "If" * num_top, packed)))


def _token_logprob(values: Iterable[float]) -> TokenLogprob:
    logprob, *pairs = values
    ids, logprobs = map(int, pairs[::2]), pairs[1::2]
    return TokenLogprob(logprob, tuple(zip(ids, logprobs, strict=True)))
