"""Paged attention on the CPU by kernels/attention.c, compiled at the first start.

A row's result doesn't depend on how its sequence was cut, so that with it logits are bitwise equal
alone, batched, chunked, cached, preempted and resumed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Batch
from ..kernels.compiler import FLOAT, INT, load_kernels
from ..models.rope import Rotation
from .backend import AttentionBackend, AttentionShape, HeadNorm

BLOCK_SIZE = 32  # the kernel's
LANES = 16  # to a multiple of which values are padded
MAX_HEAD_DIM = 512
MAX_TILE = 8  # queries that share the loads of a block
DTYPES = (torch.float32, torch.bfloat16)


class ShapeStruct(ctypes.Structure):
    _fields_ = (
        ("num_heads", INT),
        ("num_kv_heads", INT),
        ("head_dim", INT),
        ("padded_dim", INT),
        ("scale", FLOAT),
    )


@dataclass(frozen=True, slots=True)
class NativeStep:
    """Shared by all layers of one step; the kernel reads the arrays."""

    slot_mapping: torch.Tensor
    segments: NDArray[np.int32]  # [num_segments, 4]: first row, rows, position, place in `tables`
    tables: NDArray[np.int32]  # block ids of all segments
    items: NDArray[np.int32]  # [num_items, 2]: segment and row that a piece of work begins with
    num_rows: int  # without the padding


class NativeCpuAttention(AttentionBackend[NativeStep]):
    """Owns the pools: per layer keys [num_blocks, num_kv_heads, head_dim, 32] and values
    [num_blocks, num_kv_heads, 32, padded head_dim]."""

    def __init__(self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype) -> None:
        """Raises NativeKernelError."""
        self.block_size = BLOCK_SIZE
        self.chunk_unit = 1
        self.null_slot = num_blocks * BLOCK_SIZE  # of a block more than there are
        self._kernels = load_kernels()
        self.shape = shape
        self._dtype = dtype
        self._is_bf16 = int(dtype == torch.bfloat16)
        padded = -(-shape.head_dim // LANES) * LANES
        self.struct = ShapeStruct(
            shape.num_heads, shape.num_kv_heads, shape.head_dim, padded, shape.scale
        )
        group = shape.num_heads // shape.num_kv_heads
        self.rows_per_item = max(1, MAX_TILE // group)
        heads = (num_blocks + 1, shape.num_kv_heads)
        self.keys = [
            torch.zeros((*heads, shape.head_dim, BLOCK_SIZE), dtype=dtype)
            for _ in range(shape.num_layers)
        ]
        self.values = [
            torch.zeros((*heads, BLOCK_SIZE, padded), dtype=dtype) for _ in range(shape.num_layers)
        ]

    def prepare(self, batch: Batch) -> NativeStep:
        segments, tables, place = [], [], 0
        for segment in batch.segments:
            position = segment.context_len - segment.num_rows
            segments.append((segment.start, segment.num_rows, position, place))
            tables.append(segment.block_table)
            place += len(segment.block_table)
        columns = np.array(segments, dtype=np.int32).reshape(-1, 4)
        return NativeStep(
            batch.slot_mapping,
            columns,
            np.concatenate(tables).astype(np.int32) if tables else np.zeros(0, np.int32),
            self._items(columns),
            batch.num_real_rows,
        )

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: NativeStep) -> None:
        k, v = _with_plain_rows(k), _with_plain_rows(v)
        self._kernels.write_kv(
            ctypes.byref(self.struct),
            self._is_bf16,
            prepared.slot_mapping.data_ptr(),
            len(k),
            k.data_ptr(),
            v.data_ptr(),
            k.stride(0),
            v.stride(0),
            self.keys[layer].data_ptr(),
            self.values[layer].data_ptr(),
        )

    def write_rotated(
        self,
        layer: int,
        qkv: torch.Tensor,
        norm: HeadNorm | None,
        rotation: Rotation,
        prepared: NativeStep,
    ) -> torch.Tensor:
        q = torch.empty(len(qkv), self.shape.num_heads, self.shape.head_dim, dtype=self._dtype)
        self._kernels.write_rotated(
            ctypes.byref(self.struct),
            self._is_bf16,
            len(qkv),
            qkv.data_ptr(),
            norm.weight.data_ptr() if norm is not None else None,
            norm.eps if norm is not None else 0.0,
            rotation.table.cos.data_ptr(),
            rotation.table.sin.data_ptr(),
            rotation.positions.data_ptr(),
            prepared.slot_mapping.data_ptr(),
            q.data_ptr(),
            self.keys[layer].data_ptr(),
            self.values[layer].data_ptr(),
        )
        return q

    def attend(self, layer: int, q: torch.Tensor, prepared: NativeStep) -> torch.Tensor:
        q = _with_plain_rows(q)
        out = torch.empty(q.shape, dtype=self._dtype)
        out[prepared.num_rows :] = 0  # padding
        self._kernels.attend(
            ctypes.byref(self.struct),
            self._is_bf16,
            self.shape.sliding_windows[layer] or 0,
            prepared.segments.ctypes.data,
            prepared.items.ctypes.data,
            len(prepared.items),
            self.rows_per_item,
            prepared.tables.ctypes.data,
            q.data_ptr(),
            q.stride(0),
            self.keys[layer].data_ptr(),
            self.values[layer].data_ptr(),
            out.data_ptr(),
        )
        return out

    def _items(self, segments: NDArray[np.int32]) -> NDArray[np.int32]:
        """The long ones first, so that no thread is left with one at the end."""
        counts = -(-segments[:, 1] // self.rows_per_item)
        owners = np.repeat(np.arange(len(segments)), counts)
        firsts = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = firsts * self.rows_per_item
        order = np.argsort(-(segments[owners, 2] + rows), kind="stable")
        return np.stack((owners, rows), axis=1)[order].astype(np.int32)


def _with_plain_rows(x: torch.Tensor) -> torch.Tensor:
    """[num_rows, num_heads, head_dim] whose rows are contiguous each."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
