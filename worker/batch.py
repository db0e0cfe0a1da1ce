"""The ragged work of one step: many sequences' tokens end to end, no padding between them.

Only the end is rounded up, to one of few lengths: oneDNN builds a kernel for every number of rows
and keeps it. For one layer of a model with hidden size 576, the lengths up to 512 took 1,800 MiB;
the 56 that are left take 190.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from .pace import padded_length
from .scheduler import Plan


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's rows of the batch: rows `start` to `start + num_rows`.

    Its queries are the last `num_rows` of `context_len` tokens, drafts included; the keys and
    values of token i live in block `block_table[i // block_size]`.
    """

    start: int
    num_rows: int
    context_len: int
    block_table: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model reads. Every tensor is int64; rows beyond the segments are padding."""

    input_ids: torch.Tensor  # [num_rows]
    positions: torch.Tensor  # [num_rows]
    slot_mapping: torch.Tensor  # [num_rows], block id * block_size + offset in the block
    logit_rows: torch.Tensor  # [num_logit_rows], those after which a token is sampled
    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    @property
    def num_real_rows(self) -> int:
        """Without the padding."""
        return self.segments[-1].start + self.segments[-1].num_rows if self.segments else 0


def make_batch(
    plan: Plan, block_size: int, null_slot: int, device: torch.device, min_rows: int = 1
) -> Batch:
    """Lays the plan's sequences end to end; padding, up to `min_rows` at least, comes last and
    writes to `null_slot`."""
    segments: list[Segment] = []
    input_ids: list[int] = []
    logit_rows: list[int] = []
    for entry in plan.entries:
        sequence, start = entry.sequence, len(input_ids)
        first, end = sequence.num_computed_tokens, start + entry.num_rows
        segments.append(
            Segment(start, entry.num_rows, first + entry.num_rows, sequence.block_table)
        )
        input_ids += sequence.token_ids[first : first + entry.num_tokens]
        input_ids += entry.drafts
        logit_rows += range(end - entry.num_sampled, end)
    num_real_rows = len(input_ids)
    num_rows = max(min_rows, num_real_rows + plan.num_padding_tokens)
    columns = np.zeros((3, int(padded_length(np.array(num_rows)))), dtype=np.int64)
    columns[0, :num_real_rows] = input_ids
    columns[1, :num_real_rows] = positions = _positions(segments)
    columns[2] = null_slot
    columns[2, :num_real_rows] = _slots(segments, positions, block_size)
    ids, places, slots = torch.from_numpy(columns).to(device, non_blocking=True)
    rows = torch.tensor(logit_rows, dtype=torch.int64, device=device)
    return Batch(ids, places, slots, rows, tuple(segments))


def _positions(segments: list[Segment]) -> NDArray[np.int64]:
    """Of every real row in its sequence [num_real_rows]."""
    counts = [segment.num_rows for segment in segments]
    offsets = [segment.context_len - segment.num_rows - segment.start for segment in segments]
    return np.arange(sum(counts)) + np.repeat(np.array(offsets, dtype=np.int64), counts)


def _slots(
    segments: list[Segment], positions: NDArray[np.int64], block_size: int
) -> NDArray[np.int64]:
    """Where their keys and values go [num_real_rows]; all block tables are looked up as one."""
    counts = [segment.num_rows for segment in segments]
    lengths = np.array([len(segment.block_table) for segment in segments], dtype=np.int64)
    tables = chain.from_iterable(segment.block_table for segment in segments)
    blocks = np.fromiter(tables, np.int64, lengths.sum())
    table_starts = lengths.cumsum() - lengths
    index = np.repeat(table_starts, counts) + positions // block_size
    slots: NDArray[np.int64] = blocks[index] * block_size + positions % block_size
    return slots
