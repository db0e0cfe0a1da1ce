"""Linear layers by kernels/products.c: for processors with AVX-512, and AMX where there is."""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numpy as np
import torch

from ..kernels.compiler import NativeKernelError, load_kernels
from .row_quantizer import ZERO_POINT

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of a matrix
PAIR_OUTPUTS = 32


class Unit(IntEnum):
    """What multiplies, as the kernels number it; the faster ones come last."""

    VECTORS = 0
    TILES = 1


STEP_BYTES = {Unit.VECTORS: 4, Unit.TILES: 64}  # of a row, which must come out even

Abilities = frozenset[tuple[torch.dtype, Unit]]  # kinds of matrices, and what multiplies them


@cache
def abilities() -> Abilities:
    """What this processor has and the system lets this process use. Raises NativeKernelError where
    there are no kernels at all."""
    found = np.zeros((len(Unit), len(KINDS)), dtype=np.int32)
    load_kernels().find_units(found.ctypes.data)
    return frozenset((dtype, u) for dtype, kind in KINDS.items() for u in Unit if found[u, kind])


def best_unit(matrix: torch.Tensor, among: Abilities) -> Unit | None:
    """For products with this matrix."""
    row_bytes = matrix.shape[1] * matrix.itemsize
    units = [u for u in Unit if (matrix.dtype, u) in among and row_bytes % STEP_BYTES[u] == 0]
    return max(units, default=None)


class PackedMatrix:
    """A matrix [num_outputs, num_inputs] laid out for products with rows."""

    def __init__(self, matrix: torch.Tensor, unit: Unit) -> None:
        """Of a matrix that suits the unit, as `best_unit` says. Raises NativeKernelError where this
        processor has no such unit."""
        if (matrix.dtype, unit) not in abilities():
            raise NativeKernelError(f"no {unit.name.lower()} for {matrix.dtype} on this CPU")
        self.num_outputs = len(matrix)
        self._row_bytes = matrix.shape[1] * matrix.itemsize
        self._kind, self._unit = KINDS[matrix.dtype], unit
        self._kernels = load_kernels()
        filled = -(-self.num_outputs // PAIR_OUTPUTS) * PAIR_OUTPUTS
        self._packed = torch.empty(filled, matrix.shape[1], dtype=matrix.dtype)
        matrix = matrix.contiguous()
        self._kernels.pack_matrix(
            self.num_outputs, self._row_bytes, matrix.data_ptr(), self._packed.data_ptr()
        )

    def multiply(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x @ matrix.T + bias, or of bytes (x @ matrix.T - offsets) * scales, into `out`
        [num_rows, num_outputs]."""
        x = x.contiguous()
        self._kernels.multiply(
            *(self._kind, self._unit, len(x), self.num_outputs, self._row_bytes),
            *(x.data_ptr(), self._packed.data_ptr()),
            *(None if one is None else one.data_ptr() for one in (bias, offsets, scales)),
            out.data_ptr(),
        )
        return out


class NativeLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features].

    Row i of the result depends on row i of x alone, bit for bit.
    """

    is_row_independent = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, unit: Unit) -> None:
        """Of a float32 or bfloat16 weight that suits the unit."""
        self._matrix = PackedMatrix(weight, unit)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), self._matrix.num_outputs, dtype=x.dtype)
        return self._matrix.multiply(x, out, bias=self._bias)


class NativeChannels:
    """Int8Channels whose sums are exact. OneDnnChannels' have the same bits up to 2^24."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, unit: Unit) -> None:
        """Of int8 values that suit the unit."""
        self._matrix = PackedMatrix(values, unit)
        self._scales = scales
        self._offsets = ZERO_POINT * values.sum(dim=1, dtype=torch.int32)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(values), self._matrix.num_outputs)
        return self._matrix.multiply(values, out, offsets=self._offsets, scales=self._scales)
