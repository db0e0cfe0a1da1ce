"""Queries, keys and values from a layer's projection to where attention reads them, in one launch:
the heads' norm, the rotation and the write into the paged pool."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..attention.backend import AttentionShape, HeadNorm
from ..models.rope import Rotation
from .fusion_kernels import rotate_and_write_kernel
from .pointers import pointer
from .variant import Variant, next_power_of_2

TILE_PAIRS = 512  # of one program: two loads of 16 bytes a thread, in two warps at 2-byte dtypes
THREAD_BYTES = 16


class RotateAndWrite:
    """Launches the kernel for one model. Norm and rotation are float32 up to the one rounding of
    the result, where HeadNorm and Rotation in torch round between and after the norm's steps."""

    def __init__(self, shape: AttentionShape, block_size: int, dtype: torch.dtype) -> None:
        self._shape = shape
        self._plain, self._normed = rotation_variants(shape, block_size, dtype)

    def __call__(
        self,
        qkv: torch.Tensor,
        norm: HeadNorm | None,
        rotation: Rotation,
        slots: torch.Tensor,
        pool: torch.Tensor,
    ) -> torch.Tensor:
        """Queries [num_rows, num_heads, head_dim] of qkv [num_rows, (num_heads + 2 * num_kv_heads)
        * head_dim]. Keys and values go to `slots` [num_rows], int32, of one layer's pool
        [num_blocks + 1, 2, num_kv_heads, block_size, head_dim], keys first.

        The rotation's positions are int32, and its table is on the device.
        """
        shape, table = self._shape, rotation.table
        queries = qkv.new_empty(len(qkv), shape.num_heads, shape.head_dim)
        tensors = (qkv, table.cos, table.sin, rotation.positions, slots, pool)
        assert all(tensor.is_contiguous() for tensor in tensors)
        assert slots.dtype == rotation.positions.dtype == torch.int32
        variant, weight, eps = self._plain, qkv, 0.0  # weights that are not read
        if norm is not None:
            variant, weight, eps = self._normed, norm.weight, norm.eps
            assert weight.is_contiguous()
        arguments = (qkv, weight, table.cos, table.sin, rotation.positions, slots, queries, pool)
        if len(qkv):
            variant[len(qkv), _num_tiles(variant)](*arguments, eps)
        return queries


def rotation_variants(
    shape: AttentionShape, block_size: int, dtype: torch.dtype
) -> Iterator[Variant]:
    """For a model whose heads are not normed, and for one whose heads are."""
    for has_norm in (False, True):
        yield _rotation_variant(shape, block_size, dtype, has_norm)


def _rotation_variant(
    shape: AttentionShape, block_size: int, dtype: torch.dtype, has_norm: bool
) -> Variant:
    """Tiles are as many heads as make TILE_PAIRS pairs, but no more than there are."""
    pairs = next_power_of_2(shape.head_dim // 2)
    tile = min(TILE_PAIRS // pairs, next_power_of_2(shape.num_heads + shape.num_kv_heads))
    kind, floats, ints = pointer(dtype), pointer(torch.float32), "*i32"
    return Variant(
        name=f"rotate_and_write[{_name(shape)}{', norm' * has_norm}]",
        kernel=rotate_and_write_kernel,
        signature={
            "qkv": kind,
            "norm_weight": kind,
            "cos": floats,
            "sin": floats,
            "positions": ints,
            "slots": ints,
            "queries": kind,
            "pool": kind,
            "eps": "fp32",
        },
        constants={
            "NUM_HEADS": shape.num_heads,
            "NUM_KV_HEADS": shape.num_kv_heads,
            "HEAD_DIM": shape.head_dim,
            "BLOCK_SIZE": block_size,
            "TILE": tile,
            "PAIRS": pairs,
            "HAS_NORM": has_norm,
        },
        num_warps=max(1, tile * pairs * dtype.itemsize // (32 * THREAD_BYTES)),
    )


def _name(shape: AttentionShape) -> str:
    return f"{shape.num_heads}/{shape.num_kv_heads}x{shape.head_dim}"


def _num_tiles(variant: Variant) -> int:
    """Of queries and keys, and of values: none holds of both."""
    constants = variant.constants
    num_kv_heads, tile = int(constants["NUM_KV_HEADS"]), int(constants["TILE"])
    num_rotated = int(constants["NUM_HEADS"]) + num_kv_heads
    return -(-num_rotated // tile) - (-num_kv_heads // tile)
