"""Rows to 8 bits and products back by kernels of our own (kernels/quantize.c)."""

from __future__ import annotations

import torch

from ..kernels.compiler import load_kernels
from .native_linear import address
from .row_quantizer import QuantizedRows, RowQuantizer


class NativeRowQuantizer(RowQuantizer):
    """One pass over a row: 8 us for 16 rows of 896 where torch takes 65."""

    is_native = True

    def __init__(self) -> None:
        """Raises NativeKernelError."""
        self._kernels = load_kernels()

    def quantize(self, x: torch.Tensor) -> QuantizedRows:
        num_rows, size = x.shape
        x = x if x.stride(1) == 1 else x.contiguous()
        rows = QuantizedRows(
            torch.empty(num_rows, size, dtype=torch.uint8),
            torch.empty(num_rows, dtype=torch.float32),
        )
        self._kernels.quantize_rows(
            x.dtype == torch.bfloat16,
            num_rows,
            size,
            x.stride(0),
            x.data_ptr(),
            rows.values.data_ptr(),
            rows.scales.data_ptr(),
        )
        return rows

    def rescale(
        self, y: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        out = y if dtype == y.dtype else torch.empty(y.shape, dtype=dtype)
        self._kernels.rescale_rows(
            dtype == torch.bfloat16,
            *y.shape,
            y.data_ptr(),
            scales.data_ptr(),
            address(bias),
            out.data_ptr(),
        )
        return out
