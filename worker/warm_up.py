"""What a worker computes before its first request, for nobody."""

from __future__ import annotations

from collections.abc import Iterator

from ..shared.sampling_params import SamplingParams
from .scheduler import Plan, ScheduledSequence
from .sequence import Sequence

DECODES = (1, 2, 4, 8, 16, 32)  # a decode step's rows
CHUNKS = (16, 32, 64)  # tokens of one prompt
MAX_BLOCKS = max(CHUNKS)  # of one token at the least


def warm_up_plans(max_num_seqs: int, max_model_len: int, null_block: int) -> Iterator[Plan]:
    """Decodes at the beginning of their contexts, and chunks; the small ones first."""
    for count in DECODES:
        if count <= max_num_seqs:
            yield Plan(tuple(_entry(1, null_block) for _ in range(count)))
    for count in CHUNKS:
        if count <= max_model_len:
            yield Plan((_entry(count, null_block),))


def _entry(num_tokens: int, null_block: int) -> ScheduledSequence:
    sequence = Sequence(bytes(16), [0] * num_tokens, SamplingParams(max_tokens=1))
    sequence.block_table = [null_block] * MAX_BLOCKS
    return ScheduledSequence.next_of(sequence, num_tokens)
