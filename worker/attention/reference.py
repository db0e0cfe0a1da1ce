"""Paged attention as its definition has it, in float64: the oracle that others are tested by."""

from __future__ import annotations

import torch

from ..batch import Batch, Segment
from .backend import AttentionBackend, AttentionShape


class ReferenceAttention(AttentionBackend[Batch]):
    """One query row at a time, one key row per token looked up through the block table."""

    def __init__(self, shape: AttentionShape, num_blocks: int, block_size: int = 32) -> None:
        self.block_size, self.chunk_unit = block_size, 1
        self.shape = shape
        self.null_slot = num_blocks * block_size
        size = (shape.num_layers, self.null_slot + 1, shape.num_kv_heads, shape.head_dim)
        self._keys = torch.full(size, torch.nan, dtype=torch.float64)  # unwritten rows must show
        self._values = torch.full(size, torch.nan, dtype=torch.float64)

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: Batch) -> None:
        self._keys[layer, prepared.slot_mapping] = k.double()
        self._values[layer, prepared.slot_mapping] = v.double()

    def attend(self, layer: int, q: torch.Tensor, prepared: Batch) -> torch.Tensor:
        out = torch.zeros(q.shape, dtype=torch.float64)  # rows of padding stay zero
        for segment in prepared.segments:
            past = segment.context_len - segment.num_rows
            for offset in range(segment.num_rows):
                row = segment.start + offset
                out[row] = self._attend_row(layer, q[row].double(), segment, past + offset)
        return out.to(q.dtype)

    def _attend_row(
        self, layer: int, q: torch.Tensor, segment: Segment, position: int
    ) -> torch.Tensor:
        """q and the result: [num_heads, head_dim]."""
        window = self.shape.sliding_windows[layer] or position + 1
        visible = range(max(0, position - window + 1), position + 1)
        slots = torch.tensor([self._slot(segment, token) for token in visible])
        group = self.shape.num_heads // self.shape.num_kv_heads
        k = self._keys[layer, slots].repeat_interleave(group, dim=1)  # [visible, num_heads, D]
        v = self._values[layer, slots].repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,thd->ht", q, k) * self.shape.scale
        return torch.einsum("ht,thd->hd", scores.softmax(dim=-1), v)

    def _slot(self, segment: Segment, token: int) -> int:
        block = segment.block_table[token // self.block_size]
        return block * self.block_size + token % self.block_size
