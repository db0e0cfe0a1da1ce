"""Rows to 8 bits, each with a scale of its own, and products back, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ZERO_POINT = 128  # oneDNN's fast kernels multiply unsigned activations by signed weights
LIMIT = 127
LEAST = 2.0**-100  # a row below it counts as zeros: LIMIT / LEAST is still finite


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows that are about (values - ZERO_POINT) * scale."""

    values: torch.Tensor  # uint8 [num_rows, size], from 1 to 255
    scales: torch.Tensor  # float32 [num_rows]; NaN for a row that is not finite


class RowQuantizer:
    """A row's bits depend on that row alone. Takes float32 and bfloat16.

    The slow twin of NativeRowQuantizer, which computes the same bits.
    """

    is_native = False

    def quantize(self, x: torch.Tensor) -> QuantizedRows:
        """Symmetric: the greatest magnitude of a row becomes LIMIT. x is [num_rows, size]."""
        x = x.float()
        greatest = x.abs().amax(dim=1, keepdim=True)  # [num_rows, 1]; NaN where there is one
        is_usable = (greatest >= LEAST) & greatest.isfinite()
        inverse = torch.full_like(greatest, LIMIT) / greatest  # LIMIT / greatest rounds twice
        scaled = torch.where(is_usable, x * inverse, 0).round_()
        scales = torch.where(is_usable, greatest / LIMIT, torch.nan)
        scales = torch.where(greatest < LEAST, 0, scales)
        return QuantizedRows((scaled + ZERO_POINT).to(torch.uint8), scales.flatten())

    def rescale(
        self, y: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """y [num_rows, size] * scales [num_rows] + bias [size], all float32; may write into y."""
        if bias is None:
            return (y * scales[:, None]).to(dtype)
        return (y.double() * scales[:, None].double() + bias.double()).float().to(dtype)
