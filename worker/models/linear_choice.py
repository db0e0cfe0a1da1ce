"""How a worker's linear layers are made: as the checkpoint has them, or in int8."""

from __future__ import annotations

from functools import partial
from typing import Literal

import structlog
import torch
import torch.nn.functional as F

from ..kernels.choice import KernelsName
from ..kernels.compiler import NativeKernelError
from .int8_linear import Int8Channels, Int8Linear, OneDnnChannels, check_machine
from .linear import Linear, LinearFactory, LinearLayer
from .native_row_quantizer import NativeRowQuantizer
from .row_quantizer import ZERO_POINT, RowQuantizer
from .tile_linear import TileChannels, TileLinear, TileMatrix, has_tiles

QuantizeName = Literal["none", "int8"]

log = structlog.get_logger(__name__)

TRIAL_ROWS, TRIAL_SIZE = 41, 200
TOLERANCE = 1e-2  # of bfloat16, whose last bit is 2^-8 of a number


def linear_factory(quantize: QuantizeName, kernels: KernelsName) -> LinearFactory:
    """Raises ModelError where there is no int8, NativeKernelError as `cpu_kernels` does."""
    if quantize == "int8":
        check_machine()
        make_channels = _channels if _has_right_tiles(kernels) else OneDnnChannels
        return partial(Int8Linear, row_quantizer(kernels), make_channels=make_channels)
    return _linear if _has_right_tiles(kernels) else Linear


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearLayer:
    is_taken = weight.dtype == torch.bfloat16 and TileMatrix.takes(weight)
    return (TileLinear if is_taken else Linear)(weight, bias)


def _channels(values: torch.Tensor, scales: torch.Tensor) -> Int8Channels:
    return (TileChannels if TileMatrix.takes(values) else OneDnnChannels)(values, scales)


def _has_right_tiles(name: KernelsName) -> bool:
    """Whether the processor has tiles, and their products, as this machine's compiler made them,
    are right."""
    try:
        if name == "torch" or not has_tiles():
            return False
        _check_tiles()
    except NativeKernelError as error:
        if name == "native":
            raise
        log.warning("running without products by tiles, which is slower", why=str(error))
        return False
    return True


def _check_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).bfloat16()
        for size in ((TRIAL_ROWS, 96), (TRIAL_SIZE, 96), (TRIAL_SIZE,))
    )
    expected = F.linear(x.double(), weight.double(), bias.double())
    difference = (TileLinear(weight, bias)(x).double() - expected).abs() / (1 + expected.abs())
    values = torch.randint(1, 256, (TRIAL_ROWS, 64), generator=generator)
    signed = torch.randint(-127, 128, (TRIAL_SIZE, 64), generator=generator)
    y = TileChannels(signed.to(torch.int8), torch.ones(TRIAL_SIZE)).product(values.to(torch.uint8))
    is_exact = torch.equal(y, (values - ZERO_POINT).float() @ signed.float().T)
    if not (difference.max().item() < TOLERANCE and is_exact):
        raise NativeKernelError("compiled here products by tiles are wrong")


def row_quantizer(name: KernelsName) -> RowQuantizer:
    if name != "torch":
        try:
            native = NativeRowQuantizer()
            _check_quantizer(native)
            return native
        except NativeKernelError as error:
            if name == "native":
                raise
            log.warning("int8 without the native kernels, which is slower", why=str(error))
    return RowQuantizer()


def _check_quantizer(native: RowQuantizer) -> None:
    """That the kernels, as this machine's compiler made them, give the bits that they should."""
    x = torch.randn(TRIAL_ROWS, TRIAL_SIZE, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        found, expected = (one.quantize(x.to(dtype)) for one in (native, RowQuantizer()))
        is_right = torch.equal(found.values, expected.values)
        is_right &= torch.equal(found.scales, expected.scales)
        for bias in (None, x[0]):
            arguments = expected.scales, bias, dtype
            y = RowQuantizer().rescale(x, *arguments)
            is_right &= torch.equal(native.rescale(x.clone(), *arguments), y)
        if not is_right:
            raise NativeKernelError("compiled here they quantize wrongly")
