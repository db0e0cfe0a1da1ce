"""Linear layers for processors with tiles (Intel AMX), by kernels/products.c."""

from __future__ import annotations

import ctypes

import torch

from ..kernels.compiler import INT, load_kernels
from .row_quantizer import ZERO_POINT

LINE_BYTES = 64  # of a row that a tile takes at a time
PAIR_OUTPUTS = 32


def has_tiles() -> bool:
    """Whether the processor has them and the system lets this process use them. Raises
    NativeKernelError where there are no kernels at all."""
    are_there = INT()
    load_kernels().ask_for_tiles(ctypes.byref(are_there))
    return bool(are_there.value)


class TileMatrix:
    """A matrix [num_outputs, num_inputs] laid out as tiles read it: bfloat16 or int8."""

    def __init__(self, matrix: torch.Tensor) -> None:
        """Of a matrix that it `takes`."""
        self.num_outputs, self.row_bytes = len(matrix), _row_bytes(matrix)
        filled = -(-self.num_outputs // PAIR_OUTPUTS) * PAIR_OUTPUTS
        self._packed = torch.empty(filled, matrix.shape[1], dtype=matrix.dtype)
        matrix = matrix.contiguous()
        load_kernels().pack_matrix(
            self.num_outputs, self.row_bytes, matrix.data_ptr(), self._packed.data_ptr()
        )

    @staticmethod
    def takes(matrix: torch.Tensor) -> bool:
        is_known = matrix.dtype in (torch.bfloat16, torch.int8)
        return is_known and _row_bytes(matrix) % LINE_BYTES == 0

    def data_ptr(self) -> int:
        return self._packed.data_ptr()


class TileLinear:
    """x [num_tokens, in_features] to [num_tokens, out_features], both bfloat16.

    Row i of the result depends on row i of x alone, bit for bit. oneDNN's own kernels for tiles
    don't keep that: they sum one row in another order than many.
    """

    is_row_independent = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Of a bfloat16 weight that TileMatrix takes."""
        self._multiply = load_kernels().multiply_bf16
        self._matrix = TileMatrix(weight)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, matrix = x.contiguous(), self._matrix
        y = torch.empty(len(x), matrix.num_outputs, dtype=torch.bfloat16)
        self._multiply(
            *(len(x), matrix.num_outputs, matrix.row_bytes, x.data_ptr(), matrix.data_ptr()),
            self._bias.data_ptr() if self._bias is not None else None,
            y.data_ptr(),
        )
        return y


class TileChannels:
    """Int8Channels, by tiles: the same bits, for sums of integers are exact."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor) -> None:
        """Of int8 values that TileMatrix takes."""
        self._multiply = load_kernels().multiply_int8
        self._matrix = TileMatrix(values)
        self._scales = scales
        self._offsets = ZERO_POINT * values.sum(dim=1, dtype=torch.int32)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        values, matrix = values.contiguous(), self._matrix
        y = torch.empty(len(values), matrix.num_outputs)
        self._multiply(
            *(len(values), matrix.num_outputs, matrix.row_bytes, values.data_ptr()),
            *(matrix.data_ptr(), self._offsets.data_ptr(), self._scales.data_ptr(), y.data_ptr()),
        )
        return y


def _row_bytes(matrix: torch.Tensor) -> int:
    return matrix.shape[1] * matrix.itemsize
