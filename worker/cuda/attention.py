"""Paged attention on a GPU: owns the pool and the kernels' buffers, and launches.

A row that decodes has the same bits in any company, and so has a row of a chunk, however its
sequence was cut. The two round in another order: where that matters nothing decodes
(`max_decode_rows` 0), and all rows are chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..attention.backend import AttentionBackend, AttentionShape, HeadNorm
from ..batch import Batch, Segment
from ..models.rope import Rotation
from .attention_variants import HOPPER, TILE, AttentionVariants, BatchLimits, choose_variants
from .paged_batch import PagedBatch
from .rotation import RotateAndWrite
from .work_list import WorkLists

MERGE_PROGRAMS = 32  # on a multiprocessor, each a warp that waits for memory most of its time
NUM_INTERPRETED = 2  # processors, where kernels are interpreted


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A batch whose work lists are filled: good until the next one is prepared."""

    paged: PagedBatch
    positions: torch.Tensor  # [num_rows], int32
    has_chunks: bool  # without, their kernel is not launched
    has_splits: bool  # nor the merge


class TritonAttention(AttentionBackend[PagedStep]):
    """Owns the pool [num_layers, num_blocks + 1, 2, num_kv_heads, 64, head_dim], keys before
    values; its last block takes what padding writes."""

    def __init__(
        self,
        shape: AttentionShape,
        num_blocks: int,
        dtype: torch.dtype,
        limits: BatchLimits,
        device: torch.device,
    ) -> None:
        self.shape, self.limits = shape, limits
        self.block_size, self.chunk_unit = TILE, 1
        self.null_slot = num_blocks * TILE
        size = (shape.num_layers, num_blocks + 1, 2, shape.num_kv_heads, TILE, shape.head_dim)
        self.pool = torch.zeros(size, dtype=dtype, device=device)
        self.variants = choose_variants(shape, dtype, limits, _capability(device))
        self.split_len = self.variants.split_tiles * TILE  # keys, more than which are split
        self._num_processors = _num_processors(device)
        self._num_programs = _num_programs(self._num_processors, self.variants)
        self._work = WorkLists(
            shape.sliding_windows, self.variants, limits.max_num_seqs, self._num_programs, device
        )
        heads = (self.variants.num_partials, shape.num_heads)
        self._partials = torch.empty(*heads, shape.head_dim, device=device)
        self._states = torch.empty(*heads, 2, device=device)
        self._rotate_and_write = RotateAndWrite(shape, TILE, dtype)
        self._device = device

    def layer_pool(self, layer: int) -> torch.Tensor:
        """[num_blocks + 1, 2, num_kv_heads, 64, head_dim], contiguous."""
        return self.pool[layer]

    def prepare(self, batch: Batch) -> PagedStep:
        """One copy to the device."""
        segments, limits = batch.segments, self.limits
        assert len(segments) <= limits.max_num_seqs
        assert batch.num_real_rows <= limits.max_num_batched_tokens
        paged = paged_batch_of(segments, batch.slot_mapping, self._device)
        return self.prepare_paged(
            paged,
            batch.positions.to(self._device, torch.int32),
            any(segment.num_rows > self.variants.decode_rows for segment in segments),
            any(segment.context_len > self.split_len for segment in segments),
        )

    def prepare_paged(
        self,
        paged: PagedBatch,
        positions: torch.Tensor,
        has_chunks: bool = True,
        has_splits: bool = True,
    ) -> PagedStep:
        """Of a batch on the device, whose lengths the host need not know."""
        self._work.fill(paged)
        can_split = self.limits.max_model_len > self.split_len and self.variants.decode_rows > 0
        return PagedStep(paged, positions, has_chunks, has_splits and can_split)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: PagedStep) -> None:
        slots = prepared.paged.slots
        blocks, offsets = slots // TILE, slots % TILE
        self.pool[layer][blocks, 0, :, offsets] = k
        self.pool[layer][blocks, 1, :, offsets] = v

    def write_rotated(
        self,
        layer: int,
        qkv: torch.Tensor,
        norm: HeadNorm | None,
        rotation: Rotation,
        prepared: PagedStep,
    ) -> torch.Tensor:
        """In one kernel."""
        rotation = Rotation(rotation.table, prepared.positions)
        return self._rotate_and_write(qkv, norm, rotation, prepared.paged.slots, self.pool[layer])

    def attend(self, layer: int, q: torch.Tensor, prepared: PagedStep) -> torch.Tensor:
        """Rows of padding come back as zeros. Rows of q may lie apart, their heads not."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        window = self.shape.sliding_windows[layer]
        work, tables = self._work.of(window), prepared.paged.block_tables
        strides = (self._heads_per_row(q), tables.stride(0))
        partials = (self._partials, self._states)
        variants, num_rows = self.variants, len(q)
        reads = (q, self.pool[layer], tables)
        lists = (work.decode_items, work.counts)
        most = num_rows * variants.max_splits * self.shape.num_kv_heads
        decode = variants.decode[(min(self._num_programs, most),)]
        decode(*reads, *lists, out, *partials, *strides, num_rows, work.window)
        if prepared.has_chunks:
            lists = (work.chunk_items, work.counts)
            chunk = variants.chunk_of(window)[(self._num_processors,)]
            chunk(*reads, *lists, out, *strides, work.window)
        if prepared.has_splits:
            most = num_rows * self.shape.num_heads
            merge = variants.merge[(min(MERGE_PROGRAMS * self._num_processors, most),)]
            merge(work.merge_items, work.counts, *partials, out)
        return out

    def _heads_per_row(self, q: torch.Tensor) -> int:
        """How far apart rows are; heads follow each other."""
        head_dim = self.shape.head_dim
        assert q.stride(2) == 1 and q.stride(1) == head_dim and q.stride(0) % head_dim == 0
        return q.stride(0) // head_dim


def paged_batch_of(
    segments: tuple[Segment, ...], slot_mapping: torch.Tensor, device: torch.device
) -> PagedBatch:
    """Sequences and tables in the segments' order, of as many as there are."""
    num_seqs = len(segments)
    max_blocks = max((len(segment.block_table) for segment in segments), default=1)
    size = 4 * -(-(num_seqs + 1) // 4)  # every part begins at a multiple of 16 bytes
    columns = np.zeros(4 + 3 * size + num_seqs * max_blocks, dtype=np.int32)
    columns[0] = num_seqs
    starts, lens, rows = columns[4 : 4 + 3 * size].reshape(3, size)
    starts[:num_seqs] = [segment.start for segment in segments]
    if segments:
        starts[num_seqs] = segments[-1].start + segments[-1].num_rows
    lens[:num_seqs] = [segment.context_len for segment in segments]
    rows[:num_seqs] = np.arange(num_seqs)
    tables = columns[4 + 3 * size :].reshape(num_seqs, max_blocks)
    for table, segment in zip(tables, segments, strict=True):
        table[: len(segment.block_table)] = segment.block_table
    packed = torch.from_numpy(columns).to(device, non_blocking=True)
    parts = packed[4 : 4 + 3 * size].view(3, size)
    return PagedBatch(
        num_sequences=packed[:1],
        query_starts=parts[0, : num_seqs + 1],
        context_lens=parts[1, :num_seqs],
        table_rows=parts[2, :num_seqs],
        block_tables=packed[4 + 3 * size :].view(num_seqs, max_blocks),
        slots=slot_mapping.to(device, torch.int32),
    )


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return NUM_INTERPRETED
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _num_programs(num_processors: int, variants: AttentionVariants) -> int:
    """That decode."""
    return num_processors * variants.decode_programs


def _capability(device: torch.device) -> int:
    """89 is 8.9."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
