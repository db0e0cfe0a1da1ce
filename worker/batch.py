"""The ragged work of one step: many sequences' tokens end to end, no padding between them.

Only the end is rounded up, to one of few lengths: oneDNN builds a kernel for every number of rows
and keeps it. For one layer of a model with hidden size 576, the lengths up to 512 took 1,800 MiB;
the 56 that are left take 190.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .scheduler import Plan


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's rows of the batch: rows `start` to `start + num_tokens`.

    Its queries are the last `num_tokens` of `context_len` tokens, drafts included; the keys and
    values of token i live in block `block_table[i // block_size]`.
    """

    start: int
    num_tokens: int
    context_len: int
    block_table: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model reads. Every tensor is int64; rows beyond the segments are padding."""

    input_ids: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    slot_mapping: torch.Tensor  # [num_tokens], block id * block_size + offset in the block
    logit_rows: torch.Tensor  # [num_logit_rows], those after which a token is sampled
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_rows(self) -> int:
        """Without the padding."""
        return self.segments[-1].start + self.segments[-1].num_tokens if self.segments else 0


def make_batch(plan: Plan, block_size: int, null_slot: int, device: torch.device) -> Batch:
    """Lays the plan's sequences end to end; padding comes last and writes to `null_slot`."""
    segments, ids, positions, slots = [], [], [], []
    logit_rows: list[int] = []
    start = 0
    for entry in plan.entries:
        sequence, count = entry.sequence, entry.num_rows
        first = sequence.num_computed_tokens
        last = first + count
        segments.append(Segment(start, count, last, sequence.block_table))
        own = sequence.token_ids[first : first + entry.num_tokens]
        ids.append(np.asarray([*own, *entry.drafts]))
        span = np.arange(first, last)
        positions.append(span)
        blocks = np.asarray(sequence.block_table)[span // block_size]
        slots.append(blocks * block_size + span % block_size)
        start += count
        logit_rows.extend(range(start - entry.num_sampled, start))

    num_tokens = rounded_up(start + plan.num_padding_tokens)
    padding = np.zeros(num_tokens - start, dtype=np.int64)

    def on_device(parts: list[NDArray[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)

    return Batch(
        input_ids=on_device([*ids, padding]),
        positions=on_device([*positions, padding]),
        slot_mapping=on_device([*slots, padding + null_slot]),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        segments=tuple(segments),
    )


def rounded_up(num_tokens: int) -> int:
    """To a length that batches have: all up to 32, then steps of 8, from 128 on of 32."""
    step = 1 if num_tokens <= 32 else 8 if num_tokens <= 128 else 32
    return -(-num_tokens // step) * step
