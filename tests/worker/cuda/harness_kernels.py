"""Kernels on which the ahead-of-time check is itself checked: good ones, and bad ones."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from chairlift.worker.cuda.variant import Variant

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@triton.jit(do_not_specialize=["num_elements"])
def add_kernel(a, b, out, num_elements, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_valid = index < num_elements
    total = tl.load(a + index, mask=is_valid) + tl.load(b + index, mask=is_valid)
    tl.store(out + index, total, mask=is_valid)


@triton.jit(do_not_specialize=["num_tiles"])
def matmul_kernel(a, b, out, num_tiles, TILE: tl.constexpr):
    row = tl.arange(0, TILE)[:, None]
    column = tl.arange(0, TILE)[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for tile in range(num_tiles):
        left = tl.load(a + (tile * TILE + row) * TILE + column)
        right = tl.load(b + (tile * TILE + row) * TILE + column)
        total = tl.dot(left, right, total)
    tl.store(out + row * TILE + column, total)


@triton.jit
def fill_kernel(out, value):
    tl.store(out + tl.arange(0, 16), value)


def good_variants(_: Any, dtype: torch.dtype, capability: int) -> Iterator[Variant]:
    """An element-wise kernel and a product of 64 rows and columns."""
    pointers = dict.fromkeys(("a", "b", "out"), f"*{TYPES[dtype]}")
    add = pointers | {"num_elements": "i32"}
    yield Variant("add", add_kernel, add, {"BLOCK": 1024}, num_warps=4)
    yield _matmul("matmul", dtype, tile=64, num_warps=4, num_stages=3)


def bad_variants(_: Any, dtype: torch.dtype, capability: int) -> Iterator[Variant]:
    """One with too few threads for its tiles, one with too many tiles on their way, one whose
    signature forgets an argument, and one that is compiled anew for another number."""
    yield _matmul("spilling", dtype, tile=128, num_warps=2, num_stages=1)
    yield _matmul("greedy", dtype, tile=128, num_warps=8, num_stages=5)
    pointer = f"*{TYPES[dtype]}"
    yield Variant(
        "forgetful", add_kernel, {"a": pointer, "b": pointer}, {"BLOCK": 1024}, num_warps=4
    )
    yield Variant("varying", fill_kernel, {"out": "*i32", "value": "i32"}, {}, num_warps=1)


def _matmul(
    name: str, dtype: torch.dtype, *, tile: int, num_warps: int, num_stages: int
) -> Variant:
    types = dict.fromkeys(("a", "b"), f"*{TYPES[dtype]}") | {"out": "*fp32", "num_tiles": "i32"}
    return Variant(name, matmul_kernel, types, {"TILE": tile}, num_warps, num_stages)
