"""The product of one row and a matrix in Triton: as fast as the matrix is read."""

import triton
import triton.language as tl

from .rounding_kernels import rounded


@triton.jit(do_not_specialize=["num_outputs"])
def multiply_row_kernel(
    row,  # [SIZE]
    weight,  # [num_outputs, SIZE]
    bias,  # [num_outputs]
    out,  # [num_outputs]
    num_outputs,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Program: OUTPUTS of them. Sums are float32."""
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    places = outputs.to(tl.int64)[:, None] * SIZE
    sums = tl.zeros([OUTPUTS, BLOCK], dtype=tl.float32)
    for first in range(0, SIZE, BLOCK):
        column = first + tl.arange(0, BLOCK)
        is_inside = column < SIZE
        mask = is_output[:, None] & is_inside[None, :]
        weights = tl.load(weight + places + column[None, :], mask=mask, other=0.0)
        numbers = tl.load(row + column, mask=is_inside, other=0.0)
        sums += weights.to(tl.float32) * numbers.to(tl.float32)[None, :]
    result = tl.sum(sums, 1)
    if HAS_BIAS:
        result += tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + outputs, rounded(result, out.dtype.element_ty), mask=is_output)
