"""Linear layers: cuBLAS's, the fastest or with the same bits in any company; of one row, ours."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from functools import cache

import torch
import torch.nn.functional as F

from ...shared.errors import ModelError
from ..models.linear import LinearLayer
from .pointers import pointer
from .row_kernels import multiply_row_kernel
from .variant import Variant, next_power_of_2

MAX_BLOCK = 2048  # numbers of a row that a program multiplies at once
OUTPUTS = 2  # of a program
LANE_NUMBERS = 8  # that a thread loads at once
LEAST_ROWS = 16  # fewer are padded: one matrix of ours had other bits with 4 or 8 (docs/gpu.md)
UNDIVIDED = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


class CudaLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features]. A row alone is multiplied by a
    kernel that reads the matrix as fast as it can; cuBLAS takes another algorithm for few rows than
    for many. So a row's last bits depend on how many there are."""

    native = None
    is_row_independent = False

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device
    ) -> None:
        self.weight = weight.to(device)
        self._bias = None if bias is None else bias.to(device)

    @property
    def kind(self) -> tuple[torch.Size, bool]:
        """On which, beside the number of rows, cuBLAS's choice of an algorithm depends."""
        return self.weight.shape, self._bias is not None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1 and x.is_cuda:
            return multiply_row(x, self.weight, self._bias)
        return F.linear(x, self.weight, self._bias)


class UndividedLinear(CudaLinear):
    """A row has the same bits in any company, as far as `check_rows` can see: cuBLAS may not divide
    a row's sum among blocks, which it does with few rows, and there are never very few."""

    is_row_independent = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_missing = LEAST_ROWS - len(x)
        if num_missing <= 0:
            return super().__call__(x)
        return super().__call__(F.pad(x, (0, 0, 0, num_missing)))[: len(x)]


def multiply_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [1, in_features] to [1, out_features], as F.linear; sums in float32."""
    assert x.is_contiguous() and weight.is_contiguous()
    num_outputs, size = weight.shape
    out = x.new_empty(1, num_outputs)
    variant = multiply_row_variant(size, x.dtype, bias is not None)
    grid = (-(-num_outputs // OUTPUTS),)
    variant[grid](x, weight, x if bias is None else bias, out, num_outputs)
    return out


def linear_variants(
    sizes: Iterable[int], dtype: torch.dtype, *, has_bias: bool = False
) -> Iterator[Variant]:
    """All that is launched for matrices of so many columns."""
    for size in dict.fromkeys(sizes):
        yield multiply_row_variant(size, dtype, has_bias)


@cache
def multiply_row_variant(size: int, dtype: torch.dtype, has_bias: bool) -> Variant:
    """For matrices of `size` columns and any number of rows."""
    block = min(MAX_BLOCK, next_power_of_2(size))
    return Variant(
        name=f"multiply_row[{size}{', bias' * has_bias}]",
        kernel=multiply_row_kernel,
        signature={
            **dict.fromkeys(("row", "weight", "bias", "out"), pointer(dtype)),
            "num_outputs": "i32",
        },
        constants={"SIZE": size, "BLOCK": block, "OUTPUTS": OUTPUTS, "HAS_BIAS": has_bias},
        num_warps=max(1, block // (32 * LANE_NUMBERS)),
    )


def leave_sums_undivided() -> None:
    """In this process, unless the environment says otherwise: cuBLAS gets no room for the parts of
    a sum. Before its first product."""
    for name, value in UNDIVIDED.items():
        os.environ.setdefault(name, value)


@torch.inference_mode()
def check_rows(layers: Iterable[LinearLayer], sizes: Collection[int]) -> None:
    """Raises ModelError for a layer whose rows have other bits among so many rows. One of each
    kind is tried, with rows that come again and again."""
    ours = (layer for layer in layers if isinstance(layer, CudaLinear))
    for layer in {layer.kind: layer for layer in ours}.values():
        out_features, in_features = layer.weight.shape
        rows = torch.randn(LEAST_ROWS, in_features).to(layer.weight)
        expected = layer(rows)
        for size in sizes:
            num_times = -(-size // LEAST_ROWS)
            found = layer(rows.repeat(num_times, 1)[:size])
            if not torch.equal(found, expected.repeat(num_times, 1)[:size]):
                raise ModelError(
                    f"--deterministic can't be had here: products with the matrix of {out_features}"
                    f" x {in_features} {str(rows.dtype)[6:]} numbers have other bits with {size}"
                    f" rows than with {LEAST_ROWS}; try --dtype bfloat16, or leave it out"
                )
