"""The operations between matrix products by kernels of our own (kernels/fusions.c)."""

from __future__ import annotations

import torch

from ..kernels.compiler import load_kernels
from .native_linear import address
from .operations import Operations


class NativeOperations(Operations):
    """One pass over a row where torch takes several. On a CPU, contiguous float32 or bfloat16."""

    def __init__(self) -> None:
        """Raises NativeKernelError."""
        self._kernels = load_kernels()

    def add_and_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        self._kernels.rms_norm(
            x.dtype == torch.bfloat16,
            *x.shape,
            x.data_ptr(),
            address(delta),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
        )
        return out

    def silu_and_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        num_rows, size = len(gate_up), gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, size)
        is_bf16 = gate_up.dtype == torch.bfloat16
        self._kernels.silu_and_multiply(is_bf16, num_rows, size, gate_up.data_ptr(), out.data_ptr())
        return out
