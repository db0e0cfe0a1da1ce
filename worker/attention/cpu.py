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
    """What a segment's queries may see under one window."""

    first: int  # tokens before it are out of every query's window
    slots: slice | None  # of the visible keys in the pool, when their blocks follow each other
    blocks: torch.Tensor | None  # otherwise: the ids to gather
    mask: torch.Tensor | None  # [num_tokens, num_visible], 0 or -inf
    is_causal: bool  # no mask needed: as many keys as queries


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """One sequence's rows and, per distinct window of the model, its keys."""

    rows: slice
    num_tokens: int
    context_len: int
    visible: dict[int | None, VisibleKeys]


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """Shared by all layers of one step."""

    slot_mapping: torch.Tensor
    segments: tuple[PlannedSegment, ...]


class TorchCpuAttention(AttentionBackend[CpuPlan]):
    """Owns the pools, head by head: keys and values [num_kv_heads, slots, head_dim] per layer.

    In this layout a run of consecutive blocks is a view, which the kernel reads in place (measured
    1.3 to 2.7 times as fast as gathering them first, and 2 times as fast as token by token).
    """

    def __init__(self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype) -> None:
        self.block_size = BLOCK_SIZE
        self._shape = shape
        self._dtype = dtype
        self._group = shape.num_heads // shape.num_kv_heads
        self._windows = frozenset(shape.sliding_windows)
        self.null_slot = num_blocks * BLOCK_SIZE  # of a block more than there are
        num_slots = (num_blocks + 1) * BLOCK_SIZE
        size = (shape.num_layers, shape.num_kv_heads, num_slots, shape.head_dim)
        self._keys = torch.empty(size, dtype=dtype)
        self._values = torch.empty(size, dtype=dtype)
        self._scratch = torch.empty(2, 0, dtype=dtype)  # gathered keys, gathered values

    def plan(self, batch: Batch) -> CpuPlan:
        segments = tuple(self._plan_segment(segment) for segment in batch.segments)
        self._grow_scratch(segments)
        return CpuPlan(batch.slot_mapping, segments)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, plan: CpuPlan) -> None:
        self._keys[layer].index_copy_(1, plan.slot_mapping, k.transpose(0, 1))
        self._values[layer].index_copy_(1, plan.slot_mapping, v.transpose(0, 1))

    def attend(self, layer: int, q: torch.Tensor, plan: CpuPlan) -> torch.Tensor:
        out = q.new_zeros(q.shape)  # rows of padding stay zero
        window = self._shape.sliding_windows[layer]
        for segment in plan.segments:
            visible = segment.visible[window]
            k = self._read(self._keys[layer], visible, segment, self._scratch[0])
            v = self._read(self._values[layer], visible, segment, self._scratch[1])
            attend = self._attend_one if segment.num_tokens == 1 else self._attend_many
            out[segment.rows] = attend(q[segment.rows], k, v, visible)
        return out

    def _attend_one(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: VisibleKeys
    ) -> torch.Tensor:
        """The query heads of a group take the place of query rows: 2 to 6 times as fast."""
        folded = q.view(1, self._shape.num_kv_heads, self._group, self._shape.head_dim)
        out = F.scaled_dot_product_attention(folded, k, v, scale=self._shape.scale)
        return out.view(q.shape)

    def _attend_many(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: VisibleKeys
    ) -> torch.Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),  # [1, num_heads, num_tokens, head_dim]
            k,
            v,
            attn_mask=visible.mask,
            is_causal=visible.is_causal,
            scale=self._shape.scale,
            enable_gqa=self._group > 1,
        )
        return out[0].transpose(0, 1)

    def _read(
        self, pool: torch.Tensor, visible: VisibleKeys, segment: PlannedSegment, out: torch.Tensor
    ) -> torch.Tensor:
        """The visible rows of one layer's pool: [1, num_kv_heads, num_visible, head_dim]."""
        if visible.blocks is None:
            return pool[None, :, visible.slots]
        num_kv_heads, num_slots, head_dim = pool.shape
        by_block = pool.view(num_kv_heads, num_slots // BLOCK_SIZE, BLOCK_SIZE * head_dim)
        size = (num_kv_heads, len(visible.blocks), BLOCK_SIZE * head_dim)
        gathered = out[: size[0] * size[1] * size[2]].view(size)
        torch.index_select(by_block, 1, visible.blocks, out=gathered)
        first_block = visible.first // BLOCK_SIZE * BLOCK_SIZE
        rows = slice(visible.first - first_block, segment.context_len - first_block)
        return gathered.view(1, num_kv_heads, -1, head_dim)[:, :, rows]

    def _plan_segment(self, segment: Segment) -> PlannedSegment:
        return PlannedSegment(
            rows=slice(segment.start, segment.start + segment.num_tokens),
            num_tokens=segment.num_tokens,
            context_len=segment.context_len,
            visible={window: self._see(segment, window) for window in self._windows},
        )

    def _see(self, segment: Segment, window: int | None) -> VisibleKeys:
        num_tokens, context_len = segment.num_tokens, segment.context_len
        reach = context_len if window is None else window
        first = max(0, context_len - num_tokens - reach + 1)
        used = segment.block_table[first // BLOCK_SIZE : -(-context_len // BLOCK_SIZE)]
        is_run = used == list(range(used[0], used[0] + len(used)))
        start = used[0] * BLOCK_SIZE + first % BLOCK_SIZE
        is_causal = 1 < num_tokens == context_len <= reach
        has_mask = num_tokens > 1 and not is_causal
        return VisibleKeys(
            first=first,
            slots=slice(start, start + context_len - first) if is_run else None,
            blocks=None if is_run else torch.tensor(used),
            mask=self._mask(num_tokens, context_len, first, reach) if has_mask else None,
            is_causal=is_causal,
        )

    def _mask(self, num_tokens: int, context_len: int, first: int, reach: int) -> torch.Tensor:
        """0 where the query at a row's position may see the key at a column's, else -inf."""
        queries = torch.arange(context_len - num_tokens, context_len).unsqueeze(1)
        keys = torch.arange(first, context_len)
        is_visible = (keys <= queries) & (keys > queries - reach)
        mask = torch.full(is_visible.shape, -torch.inf, dtype=self._dtype)
        return mask.masked_fill_(is_visible, 0.0)

    def _grow_scratch(self, segments: tuple[PlannedSegment, ...]) -> None:
        num_blocks = max(
            (
                len(visible.blocks)
                for segment in segments
                for visible in segment.visible.values()
                if visible.blocks is not None
            ),
            default=0,
        )
        size = num_blocks * BLOCK_SIZE * self._shape.num_kv_heads * self._shape.head_dim
        if size > self._scratch.shape[1]:
            self._scratch = torch.empty(2, size, dtype=self._dtype)
