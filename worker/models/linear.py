"""A linear layer whose weight is laid out for the CPU's matrix kernels where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from .native_linear import Matrix

# oneDNN takes another float32 kernel for one long row than for many, with other last bits.
_LONG_ROW = 4096
_PACKED_ROWS_HINT = 32  # measured: hints of 1 to 256 give the same layout


class LinearLayer(Protocol):
    """x [num_tokens, in_features] to [num_tokens, out_features]."""

    is_row_independent: bool  # row i of the result depends on row i of x alone, bit for bit

    @property
    def native(self) -> Matrix | None:
        """What kernels of our own multiply with, if it is theirs."""
        ...

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


LinearFactory = Callable[[torch.Tensor, torch.Tensor | None], LinearLayer]  # of weight and bias


class Linear:
    """x [num_tokens, in_features] to [num_tokens, out_features].

    Its rows are independent where the packed kernels exist, but for bfloat16 on a CPU with AMX:
    there oneDNN sums few rows in another order than many. Takes the weight over: once packed, only
    the packed copy is kept.
    """

    native = None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._is_packed = weight.device.type == "cpu" and _can_pack(weight.dtype)
        self.is_row_independent = self._is_packed and not _sums_by_tiles(weight.dtype)
        self._weight = _pack(weight) if self._is_packed else weight
        self._needs_two_rows = weight.dtype == torch.float32 and self.in_features >= _LONG_ROW

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._is_packed:
            return F.linear(x, self._weight, self._bias)
        if self._needs_two_rows and len(x) == 1:
            return _packed_linear(x.expand(2, -1), self._weight, self._bias)[:1]
        return _packed_linear(x, self._weight, self._bias)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.contiguous(), _PACKED_ROWS_HINT
    )
    return packed


def _packed_linear(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _sums_by_tiles(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Tries the two operators, which are private to torch, on a tiny product.

    Worth it: on a 2-core Zen 4, 1.7 to 4.1 times F.linear in float32 and 1.5 to 2.3 times in
    bfloat16 at up to 32 rows.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    x = torch.arange(64, dtype=torch.float32).remainder(7).reshape(2, 32).to(dtype)
    weight = torch.arange(512, dtype=torch.float32).remainder(5).reshape(16, 32).to(dtype)
    try:
        y = _packed_linear(x, _pack(weight), None)
    except (AttributeError, RuntimeError):  # no such operator, or not for this type or CPU
        return False
    return torch.allclose(y, F.linear(x, weight))
