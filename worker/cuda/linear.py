"""Linear layers of cuBLAS: the fastest it has, and with the same bits in any company."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

import torch
import torch.nn.functional as F

from ...shared.errors import ModelError
from ..models.linear import LinearLayer

LEAST_ROWS = 16  # fewer are padded: one matrix of ours had other bits with 4 or 8 (docs/gpu.md)
UNDIVIDED = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


class CudaLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features]. cuBLAS takes another algorithm for
    few rows than for many, so a row's last bits depend on how many there are."""

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
