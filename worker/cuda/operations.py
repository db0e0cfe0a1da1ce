"""What a decoder computes between its matrix products, each in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from ..models.operations import Operations
from .fusion_kernels import add_and_norm_kernel, silu_and_multiply_kernel
from .pointers import pointer
from .variant import Variant, next_power_of_2

WARP_BYTES = 512  # what a warp loads at once, 16 bytes a thread
MAX_WARPS = 16
SILU_BLOCK = 1024  # columns of one program


class TritonOperations(Operations):
    """Works in float32 and rounds each result once, where the twin also rounds what it computes on
    the way: the norm before its weight, silu before the product. Takes contiguous tensors."""

    def add_and_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        assert x.is_contiguous() and weight.is_contiguous()
        assert delta is None or delta.is_contiguous()
        out = torch.empty_like(x)
        if len(x):
            variant = add_and_norm_variant(x.shape[1], x.dtype, delta is not None)
            variant[len(x),](x, x if delta is None else delta, weight, out, eps)
        return out

    def silu_and_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        assert gate_up.is_contiguous()
        num_rows, size = len(gate_up), gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, size)
        if num_rows:
            variant = silu_and_multiply_variant(size, gate_up.dtype)
            variant[num_rows, -(-size // SILU_BLOCK)](gate_up, out)
        return out


def operation_variants(
    hidden_size: int, intermediate_size: int, dtype: torch.dtype
) -> Iterator[Variant]:
    """All that a decoder of these sizes launches."""
    for has_delta in (False, True):
        yield add_and_norm_variant(hidden_size, dtype, has_delta)
    yield silu_and_multiply_variant(intermediate_size, dtype)


@cache
def add_and_norm_variant(size: int, dtype: torch.dtype, has_delta: bool) -> Variant:
    """For rows of any size; a row is one program's, each of whose threads loads 16 bytes or, in
    rows that more than MAX_WARPS would share, a multiple."""
    block = next_power_of_2(size)
    kind = pointer(dtype)
    return Variant(
        name=f"add_and_norm[{size}{', delta' * has_delta}]",
        kernel=add_and_norm_kernel,
        signature={"x": kind, "delta": kind, "weight": kind, "out": kind, "eps": "fp32"},
        constants={"SIZE": size, "BLOCK": block, "HAS_DELTA": has_delta},
        num_warps=max(1, min(MAX_WARPS, block * dtype.itemsize // WARP_BYTES)),
    )


@cache
def silu_and_multiply_variant(size: int, dtype: torch.dtype) -> Variant:
    """For rows of 2 * size."""
    return Variant(
        name=f"silu_and_multiply[{size}]",
        kernel=silu_and_multiply_kernel,
        signature={"gate_up": pointer(dtype), "out": pointer(dtype)},
        constants={"SIZE": size, "BLOCK": SILU_BLOCK},
        num_warps=4,
    )
