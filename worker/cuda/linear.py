"""A linear layer of cuBLAS."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class CudaLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features]. cuBLAS takes another algorithm for
    few rows than for many, so a row's last bits depend on how many there are."""

    native = None
    is_row_independent = False

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device
    ) -> None:
        self._weight = weight.to(device)
        self._bias = None if bias is None else bias.to(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)
