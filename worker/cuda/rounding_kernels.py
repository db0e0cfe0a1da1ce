"""Conversion to the model's dtype as hardware does it, in Triton's interpreter too."""

import triton
import triton.language as tl
from triton import knobs

IS_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, which is float32, to the nearest of `dtype`, ties to even. The interpreter would cut off
    what bfloat16 has no bits for: twice the error, and all of it towards zero."""
    nearest = x.to(dtype)
    if IS_INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000) >> 16
        nearest = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return nearest
