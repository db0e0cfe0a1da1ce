"""Which kernels of attention run for a model, and with which tiles. Knows no device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from triton.runtime import JITFunction

from ..attention.backend import AttentionShape
from . import attention_kernels as kernels
from .pointers import pointer
from .variant import Variant, next_power_of_2
from .work_list_kernels import plan

TILE = 64  # keys: a block of the pool
SPLIT_TILES = 8  # of keys, that one program goes through when a row decodes, or half as many
NUM_SPLIT_ITEMS = 256  # that one long sequence may be split into: about two a multiprocessor
HOPPER = 90
REGISTERS = 65536  # of a multiprocessor, from sm_80 on
MAX_REGISTERS = 255  # of a thread


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The most that a batch may have: buffers are made for it once."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_decode_rows: int = 1  # of a sequence that decodes: one more than its drafts; 0: none does


@dataclass(frozen=True, slots=True)
class AttentionVariants:
    """All kernels of a model's attention, and the capacities that they are compiled for."""

    plan: Variant
    decode: Variant
    chunk: Variant
    windowed_chunk: Variant
    merge: Variant
    decode_programs: int  # on a multiprocessor at once
    decode_rows: int  # of one sequence, up to which it is decode's
    split_tiles: int  # of a row's keys, at least
    max_splits: int
    decode_capacity: int  # items
    chunk_capacity: int
    merge_capacity: int

    @property
    def num_partials(self) -> int:
        """Results of splits that may wait for their merge."""
        return self.merge_capacity * self.max_splits

    def chunk_of(self, window: int | None) -> Variant:
        return self.chunk if window is None else self.windowed_chunk


DEFAULT_LIMITS = BatchLimits(
    max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=32768, max_decode_rows=4
)


def attention_variants(
    shape: AttentionShape,
    dtype: torch.dtype,
    limits: BatchLimits = DEFAULT_LIMITS,
    capability: int = HOPPER,
) -> Iterator[Variant]:
    """All that may be launched on a device of this capability: 89 is 8.9."""
    chosen = choose_variants(shape, dtype, limits, capability)
    yield from (chosen.plan, chosen.decode, chosen.chunk, chosen.windowed_chunk, chosen.merge)


def choose_variants(
    shape: AttentionShape, dtype: torch.dtype, limits: BatchLimits, capability: int = HOPPER
) -> AttentionVariants:
    """By the sizes of heads and groups, the size of a number, and what spills no register."""
    tiles = _Tiles.of(shape, dtype, capability)
    group = shape.num_heads // shape.num_kv_heads
    decode_rows = min(limits.max_decode_rows, tiles.decode_lanes // group)
    chunk_rows = tiles.chunk_lanes // group
    max_splits = _max_splits(shape, limits)
    max_rows, max_seqs = limits.max_num_batched_tokens, limits.max_num_seqs
    decode_capacity = min(max_seqs, max_rows) * max_splits
    chunk_capacity = max_rows // chunk_rows + min(max_seqs, max_rows)
    merge_capacity = min(max_seqs * decode_rows, max_rows)
    plan_constants = {
        "NUM_KV_HEADS": shape.num_kv_heads,
        "PADDED_SEQUENCES": next_power_of_2(max_seqs),
        "DECODE_CAPACITY": decode_capacity,
        "CHUNK_CAPACITY": chunk_capacity,
        "MERGE_CAPACITY": merge_capacity,
        "TILE": TILE,
        "DECODE_ROWS": decode_rows,
        "CHUNK_ROWS": chunk_rows,
        "SPLIT_TILES": SPLIT_TILES,
        "MAX_SPLITS": max_splits,
    }
    return AttentionVariants(
        plan=Variant("attention_plan", plan, _PLAN_SIGNATURE, plan_constants, num_warps=4),
        decode=_decode(shape, dtype, tiles),
        chunk=_chunk(shape, dtype, tiles, has_window=False),
        windowed_chunk=_chunk(shape, dtype, tiles, has_window=True),
        merge=_merge(shape, dtype),
        decode_programs=tiles.decode_programs,
        decode_rows=decode_rows,
        split_tiles=SPLIT_TILES,
        max_splits=max_splits,
        decode_capacity=decode_capacity,
        chunk_capacity=chunk_capacity,
        merge_capacity=merge_capacity,
    )


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Lanes are rows of a tile of queries: tokens times the heads of a group."""

    decode_lanes: int
    decode_stages: int
    decode_programs: int  # on a multiprocessor at once
    chunk_lanes: int
    chunk_warps: int
    chunk_stages: int

    @classmethod
    def of(cls, shape: AttentionShape, dtype: torch.dtype, capability: int) -> _Tiles:
        """As many programs that decode as fit a multiprocessor of Hopper, in registers and in
        shared memory: four were faster than three with a stage more. Tiles of chunks are the
        largest, and their stages the most, that neither spill nor take more shared memory than
        there is."""
        group = next_power_of_2(shape.num_heads // shape.num_kv_heads)
        decode_lanes = max(16, group)
        if dtype == torch.float32:  # no tensor cores: an operand's rows all lie in registers
            is_small = 80 < capability < HOPPER and shape.head_dim > 128  # 99 KiB of shared memory
            stages = 1 if is_small else 2
            return cls(decode_lanes, stages, 2, decode_lanes, 4, stages)
        if next_power_of_2(shape.head_dim) <= 128:
            is_tight = capability < HOPPER and shape.head_dim > 64
            lanes = max(64 if is_tight else 128, group)
            is_even = group * shape.num_kv_heads == shape.num_heads  # others need more registers
            programs = 4 if is_even and capability <= HOPPER else 3
            return cls(decode_lanes, 2, programs, lanes, chunk_warps=8, chunk_stages=3)
        stages = 2 if capability == HOPPER else 1
        return cls(decode_lanes, 2, 2, max(64, group), chunk_warps=8, chunk_stages=stages)


def _max_splits(shape: AttentionShape, limits: BatchLimits) -> int:
    """Of one row's keys, a power of two."""
    most = next_power_of_2(NUM_SPLIT_ITEMS // shape.num_kv_heads)
    num_tiles = -(-limits.max_model_len // TILE)
    return max(2, min(most, next_power_of_2(-(-num_tiles // ((SPLIT_TILES + 1) // 2)) + 1)))


def _decode(shape: AttentionShape, dtype: torch.dtype, tiles: _Tiles) -> Variant:
    number = pointer(dtype)
    signature = {
        **dict.fromkeys(("q", "pool"), number),
        **dict.fromkeys(("block_tables", "items", "counts"), "*i32"),
        "out": number,
        **dict.fromkeys(("partials", "states"), "*fp32"),
        **dict.fromkeys(("q_stride", "table_stride", "num_rows", "window"), "i32"),
    }
    constants = _constants(shape, tiles.decode_lanes)
    stages, registers = tiles.decode_stages, _registers(tiles.decode_programs * 4)
    return Variant("attention_decode", kernels.decode, signature, constants, 4, stages, registers)


def _registers(num_warps: int) -> int:
    """Of a thread, where so many warps share a multiprocessor's. They are handed out by eights."""
    return min(MAX_REGISTERS, REGISTERS // (32 * num_warps) // 8 * 8)


def _chunk(
    shape: AttentionShape, dtype: torch.dtype, tiles: _Tiles, *, has_window: bool
) -> Variant:
    number = pointer(dtype)
    signature = {
        **dict.fromkeys(("q", "pool"), number),
        **dict.fromkeys(("block_tables", "items", "counts"), "*i32"),
        "out": number,
        **dict.fromkeys(("q_stride", "table_stride", "window"), "i32"),
    }
    constants = {"HAS_WINDOW": has_window, **_constants(shape, tiles.chunk_lanes)}
    name = "attention_windowed_chunk" if has_window else "attention_chunk"
    warps, stages = tiles.chunk_warps, tiles.chunk_stages
    return Variant(name, kernels.chunk, signature, constants, warps, stages)


def _merge(shape: AttentionShape, dtype: torch.dtype) -> Variant:
    signature = {
        **dict.fromkeys(("items", "counts"), "*i32"),
        **dict.fromkeys(("partials", "states"), "*fp32"),
        "out": pointer(dtype),
    }
    constants = {
        "NUM_HEADS": shape.num_heads,
        "HEAD_DIM": shape.head_dim,
        "PADDED_DIM": next_power_of_2(shape.head_dim),
    }
    return Variant("attention_merge", kernels.merge, signature, constants, num_warps=1)


def _constants(shape: AttentionShape, lanes: int) -> dict[str, int | float | bool]:
    return {
        "NUM_KV_HEADS": shape.num_kv_heads,
        "GROUP": shape.num_heads // shape.num_kv_heads,
        "HEAD_DIM": shape.head_dim,
        "PADDED_DIM": max(16, next_power_of_2(shape.head_dim)),
        "BLOCK_M": lanes,
        "TILE": TILE,
        "SCALE": shape.scale * math.log2(math.e),
        "IS_INTERPRETED": not isinstance(kernels.decode, JITFunction),
    }


_PLAN_SIGNATURE: dict[str, str] = {
    **dict.fromkeys(
        (
            "num_sequences",
            "query_starts",
            "context_lens",
            "table_rows",
            "windows",
            "counts",
            "decode_items",
            "chunk_items",
            "merge_items",
        ),
        "*i32",
    ),
    "num_programs": "i32",
}
