"""A linear layer that multiplies 8-bit integers: a scale for each token and each output channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from ...shared.errors import ModelError
from .native_linear import Matrix
from .row_quantizer import ZERO_POINT, RowQuantizer

BLOCK_ROWS = 512  # of a weight, quantized at a time: torch makes float32 copies
MAX_IN_FEATURES = (2**31 - 1) // 127**2  # more products may not fit into 32 bits
VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}


class Int8Channels(Protocol):
    """A quantized weight: signed bytes [out_features, in_features], a scale for each row."""

    @property
    def native(self) -> Matrix | None:
        """What kernels of our own multiply with, if it is theirs."""
        ...

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """(values - ZERO_POINT) @ weight.T, float32, of uint8 [num_rows, in_features]."""
        ...


ChannelsFactory = Callable[[torch.Tensor, torch.Tensor], Int8Channels]  # of bytes and scales


class OneDnnChannels:
    """Int8Channels by oneDNN."""

    native = None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor) -> None:
        self._scales = scales
        self._zero_points = torch.zeros(len(values), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(values, 1.0, ZERO_POINT, self._packed, self._scales, self._zero_points),
            *(None, 1.0, 0, torch.float32, "none", [], ""),  # no bias, no quantized output
        )
        return y


class Int8Linear:
    """x [num_tokens, in_features] to [num_tokens, out_features], in the type of x.

    Row i of the result depends on row i of x alone, bit for bit: products are summed as integers,
    which is exact in any order. A row that is not finite gives a row of NaN. Only for a machine
    that passes `check_machine`.
    """

    is_row_independent = True

    def __init__(
        self,
        quantizer: RowQuantizer,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        make_channels: ChannelsFactory = OneDnnChannels,
    ) -> None:
        """Raises ModelError for a weight that is too wide."""
        in_features = weight.shape[1]
        if in_features > MAX_IN_FEATURES:
            raise ModelError(
                f"int8 takes at most {MAX_IN_FEATURES} inputs of a layer, and this model has one "
                f"with {in_features}: start with --quantize none"
            )
        self._quantizer = quantizer
        self._bias = None if bias is None else bias.float()
        self._channels = make_channels(*_quantized(quantizer, weight))

    @property
    def native(self) -> Matrix | None:
        """Only where rows are quantized by them as well."""
        matrix = self._channels.native if self._quantizer.is_native else None
        return matrix and matrix.with_bias(self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._quantizer.quantize(x)
        y = self._channels.product(rows.values)
        return self._quantizer.rescale(y, rows.scales, self._bias, x.dtype)


def _quantized(quantizer: RowQuantizer, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Its signed bytes [out_features, in_features], and the scale of each of its rows."""
    blocks = [quantizer.quantize(rows) for rows in torch.split(weight, BLOCK_ROWS)]
    values = torch.cat([rows.values for rows in blocks])
    values = values.bitwise_xor_(ZERO_POINT).view(torch.int8)  # less ZERO_POINT
    return values, torch.cat([rows.scales for rows in blocks])


def check_machine() -> None:
    """Tries the two operators, which are private to torch, on the greatest values.

    Without VNNI they add two products in 16 bits, which overflow, or take minutes for a step.
    Raises ModelError.
    """
    remedy = "start with --quantize none"
    if not has_vnni():
        flags = " or ".join(sorted(VNNI_FLAGS))
        raise ModelError(f"int8 needs a CPU with VNNI ({flags}), and this one has none: {remedy}")
    values = torch.tensor([[255], [1], [255]], dtype=torch.uint8).repeat(1, 64)
    weight = torch.tensor([[127.0], [-127.0]]).repeat(8, 64)
    try:
        y = OneDnnChannels(*_quantized(RowQuantizer(), weight)).product(values)
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"this torch can't multiply in int8 ({error}): {remedy}") from None
    if not torch.equal(y, (values.float() - ZERO_POINT) @ weight.T):
        raise ModelError(f"int8 products of this torch are wrong on this CPU: {remedy}")


def has_vnni() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return any(VNNI_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))
