"""Linear layers by kernels/products.c: for processors with AVX-512, and AMX where there is."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache

import numpy as np
import torch

from ..kernels.compiler import INT, LONG, POINTER, NativeKernelError, load_kernels
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


class Matrix(ctypes.Structure):
    """As kernels/kernels.h has it. Whoever fills it keeps what it points to."""

    _fields_ = (
        *(("kind", INT), ("unit", INT), ("num_outputs", LONG), ("row_bytes", LONG)),
        *(("packed", POINTER), ("bias", POINTER), ("offsets", POINTER), ("scales", POINTER)),
    )

    def with_bias(self, bias: torch.Tensor | None) -> Matrix:
        copy = type(self).from_buffer_copy(self)
        copy.bias = address(bias)
        return copy


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class PackedMatrix:
    """A matrix [num_outputs, num_inputs] laid out for products with rows."""

    def __init__(
        self,
        matrix: torch.Tensor,
        unit: Unit,
        *,
        bias: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
    ) -> None:
        """Of a matrix that suits the unit, as `best_unit` says. Raises NativeKernelError where this
        processor has no such unit."""
        if (matrix.dtype, unit) not in abilities():
            raise NativeKernelError(f"no {unit.name.lower()} for {matrix.dtype} on this CPU")
        self.num_outputs = len(matrix)
        self._kernels = load_kernels()
        filled = -(-self.num_outputs // PAIR_OUTPUTS) * PAIR_OUTPUTS
        packed = torch.empty(filled, matrix.shape[1], dtype=matrix.dtype)
        matrix, row_bytes = matrix.contiguous(), matrix.shape[1] * matrix.itemsize
        self._kernels.pack_matrix(self.num_outputs, row_bytes, matrix.data_ptr(), packed.data_ptr())
        self._kept = packed, bias, offsets, scales
        self.struct = Matrix(
            *(KINDS[matrix.dtype], unit, self.num_outputs, row_bytes),
            *(address(one) for one in self._kept),
        )

    def multiply(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x @ matrix.T + bias, or of bytes (x @ matrix.T - offsets) * scales, into `out`
        [num_rows, num_outputs]."""
        x = x.contiguous()
        self._kernels.multiply(ctypes.byref(self.struct), len(x), x.data_ptr(), out.data_ptr())
        return out


class NativeLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features].

    Row i of the result depends on row i of x alone, bit for bit.
    """

    is_row_independent = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, unit: Unit) -> None:
        """Of a float32 or bfloat16 weight that suits the unit."""
        bias = None if bias is None else bias.float()
        self._matrix = PackedMatrix(weight, unit, bias=bias)
        self.native = self._matrix.struct

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), self._matrix.num_outputs, dtype=x.dtype)
        return self._matrix.multiply(x, out)


class NativeChannels:
    """Int8Channels whose sums are exact. OneDnnChannels' have the same bits up to 2^24."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, unit: Unit) -> None:
        """Of int8 values that suit the unit."""
        offsets = ZERO_POINT * values.sum(dim=1, dtype=torch.int32)
        self._matrix = PackedMatrix(values, unit, offsets=offsets, scales=scales)
        self.native = self._matrix.struct

    def product(self, values: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(values), self._matrix.num_outputs)
        return self._matrix.multiply(values, out)
