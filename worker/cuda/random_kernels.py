"""Random numbers that depend on a request's seed, the output's index and the token alone."""

import triton
import triton.language as tl

PHILOX_ROUNDS = tl.constexpr(10)
SMALL = tl.constexpr(0.015625)  # below it a series for log(1 - v) is the better one
BELOW_ONE = tl.constexpr(0.99999994)
MAX_GUMBEL = tl.constexpr(22.9)  # -log(2^-33), rounded up
MIN_GUMBEL = tl.constexpr(-2.9)  # -log(-log(1 - BELOW_ONE)), rounded down


@triton.jit
def philox(group, output_index, seed_low, seed_high):
    """Philox-4x32-10 (Salmon et al.: Parallel random numbers: as easy as 1, 2, 3, SC 2011).

    Counter (group, output_index, 0, 0), key (seed_low, seed_high): four uint32 per group, those of
    the tokens 4 * group to 4 * group + 3.
    """
    counter0 = group.to(tl.uint32)
    counter1 = counter0 * 0 + output_index.to(tl.uint32, bitcast=True)
    counter2 = counter0 * 0
    counter3 = counter0 * 0
    key0 = seed_low.to(tl.uint32, bitcast=True)
    key1 = seed_high.to(tl.uint32, bitcast=True)
    return tl.philox_impl(counter0, counter1, counter2, counter3, key0, key1, PHILOX_ROUNDS)


@triton.jit
def gumbel(bits):
    """A Gumbel variate of 32 random bits, precise where it is large: that is where winners are.

    -log(-log(1 - v)) with v in the middle of one of 2^32 parts of [0, 1].
    """
    v = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = tl.minimum(v, BELOW_ONE)
    series = v * (1.0 + v * (0.5 + v * (0.3333333333333333 + v * 0.25)))
    exponential = tl.where(v < SMALL, series, -tl.log(1.0 - v))
    return -tl.log(exponential)


@triton.jit
def gumbels_of_range(first, SIZE: tl.constexpr, output_index, seed_low, seed_high):
    """Of the tokens `first` to `first + SIZE`, both multiples of four [SIZE]."""
    groups = first // 4 + tl.arange(0, SIZE // 4)
    bits0, bits1, bits2, bits3 = philox(groups, output_index, seed_low, seed_high)
    pairs = tl.join(tl.join(bits0, bits2), tl.join(bits1, bits3))  # [SIZE // 4, 2, 2]
    return gumbel(tl.reshape(pairs, [SIZE]))


@triton.jit
def gumbels_of_tokens(token_ids, output_index, seed_low, seed_high):
    """Of any tokens, the same numbers as in their range."""
    bits0, bits1, bits2, bits3 = philox(token_ids // 4, output_index, seed_low, seed_high)
    lane = token_ids % 4
    low = tl.where(lane == 0, bits0, bits1)
    high = tl.where(lane == 2, bits2, bits3)
    return gumbel(tl.where(lane < 2, low, high))
