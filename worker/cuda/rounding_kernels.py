"""Conversion to the model's dtype as hardware does it, in Triton's interpreter too."""

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, which is float32, to the nearest of `dtype`, ties to even. The interpreter would cut off
    what bfloat16 has no bits for: twice the error, and all of it towards zero."""
    if IS_INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)
