"""Shows the random numbers that the sampling kernels use."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from chairlift.worker.cuda.random_kernels import gumbels_of_range, gumbels_of_tokens, philox


@triton.jit
def random_numbers_kernel(bits, variates, output_indices, seeds, SIZE: tl.constexpr):
    """Of tokens 0 to SIZE, program by program: bits [num_programs, SIZE] and what they make,
    of the range and of each of its tokens [num_programs, 2, SIZE]."""
    program = tl.program_id(0)
    output_index = tl.load(output_indices + program)
    seed_low = tl.load(seeds + program * 2)
    seed_high = tl.load(seeds + program * 2 + 1)
    groups = tl.arange(0, SIZE // 4)
    bits0, bits1, bits2, bits3 = philox(groups, output_index, seed_low, seed_high)
    row = bits + program * SIZE + groups * 4
    tl.store(row, bits0.to(tl.int32, bitcast=True))
    tl.store(row + 1, bits1.to(tl.int32, bitcast=True))
    tl.store(row + 2, bits2.to(tl.int32, bitcast=True))
    tl.store(row + 3, bits3.to(tl.int32, bitcast=True))
    noise = gumbels_of_range(0, SIZE, output_index, seed_low, seed_high)
    tokens = tl.arange(0, SIZE)
    tl.store(variates + 2 * program * SIZE + tokens, noise)
    one_by_one = gumbels_of_tokens(tokens, output_index, seed_low, seed_high)
    tl.store(variates + (2 * program + 1) * SIZE + tokens, one_by_one)
