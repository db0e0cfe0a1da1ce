"""A ragged batch as kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Everything is int32 and on the device, also how much of it is valid: a graph that was
    captured once serves any batch that fits.

    Sequence s has the rows `query_starts[s]` to `query_starts[s + 1]` of the batch, which are the
    last of its `context_lens[s]` tokens. Token i's keys and values are in block
    `block_tables[table_rows[s], i // block_size]`.
    """

    num_sequences: torch.Tensor  # [1]; sequences beyond are padding, whatever stands there
    query_starts: torch.Tensor  # [max_num_seqs + 1]
    context_lens: torch.Tensor  # [max_num_seqs]
    table_rows: torch.Tensor  # [max_num_seqs]
    block_tables: torch.Tensor  # [num_tables, max_blocks]
    slots: torch.Tensor  # [num_rows], block * block_size + offset; of padding rows the null slot
