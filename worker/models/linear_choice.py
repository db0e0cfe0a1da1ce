"""How a worker's linear layers are made: as the checkpoint has them, or in int8."""

from __future__ import annotations

from functools import partial
from typing import Literal

import structlog
import torch

from ..kernels.choice import KernelsName
from ..kernels.compiler import NativeKernelError
from .int8_linear import Int8Linear, check_machine
from .linear import Linear, LinearFactory
from .native_row_quantizer import NativeRowQuantizer
from .row_quantizer import RowQuantizer

QuantizeName = Literal["none", "int8"]

log = structlog.get_logger(__name__)

TRIAL_ROWS, TRIAL_SIZE = 41, 200


def linear_factory(quantize: QuantizeName, kernels: KernelsName) -> LinearFactory:
    """Raises ModelError where there is no int8, NativeKernelError as `cpu_kernels` does."""
    if quantize == "none":
        return Linear
    check_machine()
    return partial(Int8Linear, row_quantizer(kernels))


def row_quantizer(name: KernelsName) -> RowQuantizer:
    if name != "torch":
        try:
            native = NativeRowQuantizer()
            _check(native)
            return native
        except NativeKernelError as error:
            if name == "native":
                raise
            log.warning("int8 without the native kernels, which is slower", why=str(error))
    return RowQuantizer()


def _check(native: RowQuantizer) -> None:
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
