"""How a worker's linear layers are made: as the checkpoint has them, or in int8."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from ..kernels.choice import KernelsName, check_close, ours_or
from ..kernels.compiler import NativeKernelError
from .int8_linear import Int8Channels, Int8Linear, OneDnnChannels, check_machine
from .linear import Linear, LinearFactory, LinearLayer
from .native_linear import Abilities, NativeChannels, NativeLinear, Unit, abilities, best_unit
from .native_row_quantizer import NativeRowQuantizer
from .row_quantizer import ZERO_POINT, RowQuantizer

QuantizeName = Literal["none", "int8"]

TRIAL_ROWS, TRIAL_SIZE = 41, 200
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.int8: 1e-9}


def linear_factory(quantize: QuantizeName, kernels: KernelsName) -> LinearFactory:
    """Raises ModelError where there is no int8, NativeKernelError as `cpu_kernels` does."""
    able = _right_products(kernels)
    if quantize == "int8":
        check_machine()
        return partial(Int8Linear, row_quantizer(kernels), make_channels=partial(_channels, able))
    return partial(_linear, able)


def _linear(able: Abilities, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearLayer:
    unit = best_unit(weight, able)
    return Linear(weight, bias) if unit is None else NativeLinear(weight, bias, unit)


def _channels(able: Abilities, values: torch.Tensor, scales: torch.Tensor) -> Int8Channels:
    unit = best_unit(values, able)
    return OneDnnChannels(values, scales) if unit is None else NativeChannels(values, scales, unit)


def _right_products(name: KernelsName) -> Abilities:
    """What the processor can multiply that is right, as this machine's compiler made it."""

    def ours() -> Abilities:
        able = abilities()
        for dtype, unit in able:
            _check_products(dtype, unit)
        return able

    warning = "running without products of our own, which is slower"
    return ours_or(frozenset(), name, ours, warning)


def _check_products(dtype: torch.dtype, unit: Unit) -> None:
    if dtype == torch.int8:
        x = torch.arange(TRIAL_ROWS * 64).remainder(255).reshape(TRIAL_ROWS, 64) + 1
        values = torch.arange(TRIAL_SIZE * 64).remainder(251).reshape(TRIAL_SIZE, 64) - 125
        expected = ((x - ZERO_POINT) @ values.T).double()
        layer = NativeChannels(values.to(dtype), torch.ones(TRIAL_SIZE), unit)
        found = layer.product(x.to(torch.uint8))
    else:
        generator = torch.Generator().manual_seed(0)
        sizes = (TRIAL_ROWS, 96), (TRIAL_SIZE, 96), (TRIAL_SIZE,)
        x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
        expected = F.linear(x.double(), weight.double(), bias.double())
        found = NativeLinear(weight, bias, unit)(x)
    check_close(found, expected, TOLERANCE[dtype], unit.name.lower())


def row_quantizer(name: KernelsName) -> RowQuantizer:
    def ours() -> RowQuantizer:
        native = NativeRowQuantizer()
        _check_quantizer(native)
        return native

    warning = "int8 without the native kernels, which is slower"
    return ours_or(RowQuantizer(), name, ours, warning)


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
