"""Paged attention on the CPU in plain torch: one kernel call per sequence and layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..batch import Batch, Segment
from .backend import AttentionBackend, AttentionShape

BLOCK_SIZE = 32  # torch's kernel tiles queries by 32 rows: chunks that end there keep their bits


@dataclass(frozen=True, slots=True)
class VisibleKeys:
    """What one segment's queries may see under one window."""

    blocks: torch.Tensor | None  # ids to gather; None when they follow each other in the pool
    start: int  # row of the first visible key: in the pool, or among the gathered blocks
    num_keys: int
    is_single_query: bool
    is_causal: bool  # as many keys as queries: needs no mask
    mask: torch.Tensor | None  # [num_tokens, num_keys], 0 or -inf


@dataclass(frozen=True, slots=True)
class CpuStep:
    """Shared by all layers of one step."""

    slot_mapping: torch.Tensor
    row_counts: list[int]  # per segment, then the padding
    num_padding_rows: int
    visible: dict[int | None, tuple[VisibleKeys, ...]]  # by window, per segment


class TorchCpuAttention(AttentionBackend[CpuStep]):
    """Owns the pools, head by head: per layer [1, num_kv_heads, num_slots, head_dim].

    In this layout a run of consecutive blocks is a view, which the kernel reads in place: measured
    1.3 to 2.7 times as fast as gathering the blocks first.
    """

    def __init__(self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype) -> None:
        self.block_size = self.chunk_unit = BLOCK_SIZE
        self.shape = shape
        self._dtype = dtype
        self._group = shape.num_heads // shape.num_kv_heads
        self._windows = frozenset(shape.sliding_windows)
        self.null_slot = num_blocks * BLOCK_SIZE  # of a block more than there are
        size = (1, shape.num_kv_heads, (num_blocks + 1) * BLOCK_SIZE, shape.head_dim)
        self._keys = [torch.empty(size, dtype=dtype) for _ in range(shape.num_layers)]
        self._values = [torch.empty(size, dtype=dtype) for _ in range(shape.num_layers)]
        self._scratch = torch.empty(2, 0, dtype=dtype)  # gathered keys, gathered values

    def prepare(self, batch: Batch) -> CpuStep:
        row_counts = [segment.num_rows for segment in batch.segments]
        num_padding_rows = batch.num_rows - sum(row_counts)
        visible = {
            window: tuple(self._see(segment, window) for segment in batch.segments)
            for window in self._windows
        }
        self._grow_scratch([keys for per_segment in visible.values() for keys in per_segment])
        return CpuStep(
            batch.slot_mapping, [*row_counts, num_padding_rows], num_padding_rows, visible
        )

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: CpuStep) -> None:
        self._keys[layer][0].index_copy_(1, prepared.slot_mapping, k.transpose(0, 1))
        self._values[layer][0].index_copy_(1, prepared.slot_mapping, v.transpose(0, 1))

    def attend(self, layer: int, q: torch.Tensor, prepared: CpuStep) -> torch.Tensor:
        keys, values = self._keys[layer], self._values[layer]
        *queries, padding = torch.split(q, prepared.row_counts)
        out = []
        for rows, visible in zip(
            queries, prepared.visible[self.shape.sliding_windows[layer]], strict=True
        ):
            k = self._read(keys, visible, self._scratch[0])
            v = self._read(values, visible, self._scratch[1])
            attend = self._attend_one if visible.is_single_query else self._attend_many
            out.append(attend(rows, k, v, visible))
        if prepared.num_padding_rows:
            out.append(torch.zeros_like(padding))
        return torch.cat(out)

    def _attend_one(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: VisibleKeys
    ) -> torch.Tensor:
        """The query heads of a group take the place of query rows: 2 to 6 times as fast."""
        folded = q.view(1, self.shape.num_kv_heads, self._group, self.shape.head_dim)
        out = F.scaled_dot_product_attention(folded, k, v, scale=self.shape.scale)
        return out.reshape(q.shape)

    def _attend_many(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: VisibleKeys
    ) -> torch.Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),  # [1, num_heads, num_tokens, head_dim]
            k,
            v,
            attn_mask=visible.mask,
            is_causal=visible.is_causal,
            scale=self.shape.scale,
            enable_gqa=self._group > 1,
        )
        return out[0].transpose(0, 1)

    def _read(
        self, pool: torch.Tensor, visible: VisibleKeys, scratch: torch.Tensor
    ) -> torch.Tensor:
        """The visible rows of one layer: [1, num_kv_heads, num_keys, head_dim]."""
        if visible.blocks is not None:
            pool = self._gather(pool, visible.blocks, scratch)
        return pool.narrow(2, visible.start, visible.num_keys)

    def _gather(
        self, pool: torch.Tensor, blocks: torch.Tensor, scratch: torch.Tensor
    ) -> torch.Tensor:
        num_kv_heads, head_dim = self.shape.num_kv_heads, self.shape.head_dim
        by_block = pool.view(num_kv_heads, -1, BLOCK_SIZE * head_dim)
        size = num_kv_heads * len(blocks) * BLOCK_SIZE * head_dim
        gathered = scratch[:size].view(num_kv_heads, len(blocks), BLOCK_SIZE * head_dim)
        torch.index_select(by_block, 1, blocks, out=gathered)
        return gathered.view(1, num_kv_heads, -1, head_dim)

    def _see(self, segment: Segment, window: int | None) -> VisibleKeys:
        num_tokens, context_len = segment.num_rows, segment.context_len
        reach = context_len if window is None else window
        first = max(0, context_len - num_tokens - reach + 1)
        used = segment.block_table[first // BLOCK_SIZE : -(-context_len // BLOCK_SIZE)]
        is_run = used == list(range(used[0], used[0] + len(used)))
        is_causal = 1 < num_tokens == context_len <= reach
        needs_mask = num_tokens > 1 and not is_causal
        return VisibleKeys(
            blocks=None if is_run else torch.tensor(used),
            start=first % BLOCK_SIZE + (used[0] * BLOCK_SIZE if is_run else 0),
            num_keys=context_len - first,
            is_single_query=num_tokens == 1,
            is_causal=is_causal,
            mask=self._mask(num_tokens, context_len, first, reach) if needs_mask else None,
        )

    def _mask(self, num_tokens: int, context_len: int, first: int, reach: int) -> torch.Tensor:
        """0 where the query at a row's position may see the key at a column's, else -inf."""
        queries = torch.arange(context_len - num_tokens, context_len).unsqueeze(1)
        keys = torch.arange(first, context_len)
        is_visible = (keys <= queries) & (keys > queries - reach)
        mask = torch.full(is_visible.shape, -torch.inf, dtype=self._dtype)
        return mask.masked_fill_(is_visible, 0.0)

    def _grow_scratch(self, visible: list[VisibleKeys]) -> None:
        """Room for the longest gather: kept, for fresh memory would be faulted in every time."""
        counts = [len(keys.blocks) for keys in visible if keys.blocks is not None]
        size = max(counts, default=0) * BLOCK_SIZE * self.shape.num_kv_heads * self.shape.head_dim
        if size > self._scratch.shape[1]:
            self._scratch = torch.empty(2, size, dtype=self._dtype)
