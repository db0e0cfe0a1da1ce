"""Where a table row's sampling parameters stand in its tensors, as kernels read them."""

import triton.language as tl

# float32
TEMPERATURE = tl.constexpr(0)
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)
PRESENCE_PENALTY = tl.constexpr(3)
FREQUENCY_PENALTY = tl.constexpr(4)
REPETITION_PENALTY = tl.constexpr(5)
NUM_FLOATS = tl.constexpr(8)

# int32
TOP_K = tl.constexpr(0)
SEED_LOW = tl.constexpr(1)
SEED_HIGH = tl.constexpr(2)
NUM_OUTPUT_TOKENS = tl.constexpr(3)
MIN_TOKENS = tl.constexpr(4)
NUM_STOPS = tl.constexpr(5)
NUM_BIASES = tl.constexpr(6)
NUM_INTEGERS = tl.constexpr(8)

GREEDY_BELOW = tl.constexpr(1e-5)  # of temperatures, as SamplingParams.is_greedy
IN_PROMPT = tl.constexpr(1 << 30)  # of a token's count: the bits below are its outputs
