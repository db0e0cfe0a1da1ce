"""What a sampler has to know of each row of logits before it can choose.

statistics: of each split of a row, adjusted as its request wants; merge: of the row. Splits depend
on the vocabulary alone.
"""

import triton
import triton.language as tl

from .sampling_columns import (
    FREQUENCY_PENALTY,
    GREEDY_BELOW,
    IN_PROMPT,
    MIN_P,
    MIN_TOKENS,
    NUM_BIASES,
    NUM_FLOATS,
    NUM_INTEGERS,
    NUM_OUTPUT_TOKENS,
    NUM_STOPS,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)

INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def _has_penalties(floats):
    return (
        (tl.load(floats + PRESENCE_PENALTY) != 0.0)
        | (tl.load(floats + FREQUENCY_PENALTY) != 0.0)
        | (tl.load(floats + REPETITION_PENALTY) != 1.0)
    )


@triton.jit
def is_adjusted_row(floats, integers):
    """1 where a row's logits are not taken as they are, else 0; of its rows in both tables."""
    is_early = tl.load(integers + NUM_OUTPUT_TOKENS) < tl.load(integers + MIN_TOKENS)
    has_stops = is_early & (tl.load(integers + NUM_STOPS) > 0)
    has_biases = tl.load(integers + NUM_BIASES) > 0
    return (_has_penalties(floats) | has_stops | has_biases).to(tl.int32)


@triton.jit
def _count_below(ids, num_ids, limit, MAX_IDS: tl.constexpr):
    index = tl.arange(0, MAX_IDS)
    is_below = tl.load(ids + index, mask=index < num_ids, other=limit) < limit
    return tl.sum(is_below.to(tl.int32), axis=0)


@triton.jit
def _biased(x, offsets, first, end, ids, biases, num_biases, MAX_BIASES: tl.constexpr):
    """Those of the ascending ids that lie in the split, one after another."""
    start = _count_below(ids, num_biases, first, MAX_BIASES)
    stop = _count_below(ids, num_biases, end, MAX_BIASES)
    for number in range(start, stop):
        bias = tl.load(biases + number)
        x = tl.where(offsets == tl.load(ids + number), x + bias, x)
    return x


@triton.jit
def _without_stops(x, offsets, first, end, ids, num_stops, MAX_STOPS: tl.constexpr):
    start = _count_below(ids, num_stops, first, MAX_STOPS)
    stop = _count_below(ids, num_stops, end, MAX_STOPS)
    for number in range(start, stop):
        x = tl.where(offsets == tl.load(ids + number), -float("inf"), x)
    return x


@triton.jit
def _penalised(x, counted, floats):
    """Repetition penalty: Keskar et al. 2019 (CTRL); the others: OpenAI's API reference."""
    factor = tl.full(x.shape, 1.0, tl.float32) * tl.load(floats + REPETITION_PENALTY)
    repeated = tl.where(x > 0, tl.div_rn(x, factor), x * factor)
    x = tl.where(counted != 0, repeated, x)
    num_outputs = (counted & (IN_PROMPT - 1)).to(tl.float32)
    frequency = tl.load(floats + FREQUENCY_PENALTY)
    penalty = frequency * num_outputs + tl.load(floats + PRESENCE_PENALTY)
    return tl.where(num_outputs > 0, x - penalty, x)


@triton.jit
def statistics_kernel(
    logits,  # [num_rows, VOCAB]
    num_valid,  # [1]
    table_rows,  # [num_rows]
    floats,  # [num_tables, NUM_FLOATS]
    integers,  # [num_tables, NUM_INTEGERS]
    stop_ids,  # [num_tables, MAX_STOPS]
    bias_ids,  # [num_tables, MAX_BIASES]
    biases,  # [num_tables, MAX_BIASES]
    counts,  # [num_tables, VOCAB]
    adjusted,  # [num_rows, VOCAB], written where a row is adjusted
    block_maxima,  # [num_rows, NUM_SPLITS * SPLIT // BLOCK]
    split_maxima,  # [num_rows, NUM_SPLITS], of the logits as they came
    split_sums,  # [num_rows, NUM_SPLITS], of their exponentials over the split's highest
    split_best,  # [num_rows, NUM_SPLITS], highest adjusted logit; NaN where there is one
    split_tokens,  # [num_rows, NUM_SPLITS], its token
    VOCAB: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MAX_STOPS: tl.constexpr,
    MAX_BIASES: tl.constexpr,
):
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if row >= tl.load(num_valid):
        return
    table = tl.load(table_rows + row).to(tl.int64)
    floats += table * NUM_FLOATS
    integers += table * NUM_INTEGERS
    first = split * SPLIT
    offsets = first + tl.arange(0, SPLIT)
    is_inside = offsets < VOCAB
    x = tl.load(logits + row * VOCAB + offsets, mask=is_inside, other=-float("inf"))
    x = x.to(tl.float32)
    is_nan = x != x
    highest = tl.max(tl.where(is_nan, -float("inf"), x), axis=0)
    shift = tl.where(tl.abs(highest) < float("inf"), highest, 0.0)
    tl.store(split_maxima + row * NUM_SPLITS + split, highest)
    tl.store(split_sums + row * NUM_SPLITS + split, tl.sum(tl.exp(x - shift), axis=0))
    if is_adjusted_row(floats, integers) > 0:
        num_biases = tl.load(integers + NUM_BIASES)
        end = first + SPLIT
        if num_biases > 0:
            ids, values = bias_ids + table * MAX_BIASES, biases + table * MAX_BIASES
            x = _biased(x, offsets, first, end, ids, values, num_biases, MAX_BIASES)
        if _has_penalties(floats):
            counted = tl.load(counts + table * VOCAB + offsets, mask=is_inside, other=0)
            x = _penalised(x, counted, floats)
        if tl.load(integers + NUM_OUTPUT_TOKENS) < tl.load(integers + MIN_TOKENS):
            num_stops = tl.load(integers + NUM_STOPS)
            ids = stop_ids + table * MAX_STOPS
            x = _without_stops(x, offsets, first, end, ids, num_stops, MAX_STOPS)
        tl.store(adjusted + row * VOCAB + offsets, x, mask=is_inside)
    is_nan = x != x
    num_nans = tl.sum(is_nan.to(tl.int32), axis=0)
    x = tl.where(is_nan, -float("inf"), x)
    maxima = tl.max(tl.reshape(x, [SPLIT // BLOCK, BLOCK]), axis=1)
    blocks = (row * NUM_SPLITS + split) * (SPLIT // BLOCK) + tl.arange(0, SPLIT // BLOCK)
    tl.store(block_maxima + blocks, maxima)
    best, place = tl.max(x, axis=0, return_indices=True)
    tl.store(split_best + row * NUM_SPLITS + split, tl.where(num_nans > 0, float("nan"), best))
    tl.store(split_tokens + row * NUM_SPLITS + split, first + place)


@triton.jit
def _bound_of_top_k(bound, top_k, keys):
    """A key that at least top_k of the blocks' best are not above, if `bound` is one: each block
    has a token as good as its best. As low as a few halvings make it."""
    low = tl.full([], -1, tl.int32)
    num_below = tl.sum((keys <= bound).to(tl.int32), axis=0)
    while (num_below > top_k + top_k // 2) & (bound - low > 1):
        middle = low + (bound - low) // 2
        count = tl.sum((keys <= middle).to(tl.int32), axis=0)
        suffices = count >= top_k
        bound = tl.where(suffices, middle, bound)
        num_below = tl.where(suffices, count, num_below)
        low = tl.where(suffices, low, middle)
    return bound


@triton.jit
def _bound_of_top_p(bound, excess, distances, inverse_temperature, BLOCK: tl.constexpr):
    """A key above which all tokens together weigh at most `excess`, if there is one up to `bound`:
    none weighs more than its block's best. To within a hundredth."""
    low = tl.full([], -1, tl.int32)
    while bound - low > 65536:
        middle = low + (bound - low) // 2
        farthest = tl.maximum(distances, middle.to(tl.float32, bitcast=True))
        weight = BLOCK * tl.sum(tl.exp(-farthest * inverse_temperature), axis=0)
        bound = tl.where(weight <= excess, middle, bound)
        low = tl.where(weight <= excess, low, middle)
    return bound


@triton.jit
def bound_of_min_p(floats):
    """The key of the farthest that a token's logit may be from the highest."""
    min_p = tl.load(floats + MIN_P)
    distance = -tl.load(floats + TEMPERATURE) * tl.log(tl.maximum(min_p, 1.2e-38))
    bits = tl.abs(distance).to(tl.int32, bitcast=True)  # where min_p is 1 it is minus zero
    return tl.where(min_p > 0.0, bits, INFINITY_BITS)


@triton.jit
def is_filtered(floats, integers, VOCAB: tl.constexpr):
    """Whether which tokens are kept takes more than their distance from the highest."""
    top_k = tl.load(integers + TOP_K)
    return ((top_k > 0) & (top_k < VOCAB)) | (tl.load(floats + TOP_P) < 1.0)


@triton.jit
def merge_kernel(
    num_valid,  # [1]
    table_rows,  # [num_rows]
    floats,  # [num_tables, NUM_FLOATS]
    integers,  # [num_tables, NUM_INTEGERS]
    block_maxima,  # [num_rows, NUM_SPLITS * SPLIT // BLOCK]
    split_maxima,  # [num_rows, NUM_SPLITS]
    split_sums,  # [num_rows, NUM_SPLITS]
    split_best,  # [num_rows, NUM_SPLITS]
    split_tokens,  # [num_rows, NUM_SPLITS]
    highest,  # [num_rows], the adjusted logits' highest
    normalisers,  # [num_rows], log of the sum of the exponentials of the logits as they came
    bounds,  # [num_rows], no token with a key above is kept
    num_candidates,  # [num_rows], zeroed
    token_ids,  # [num_rows], the best
    is_number,  # [num_rows]
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(num_valid):
        return
    table = tl.load(table_rows + row).to(tl.int64)
    floats += table * NUM_FLOATS
    integers += table * NUM_INTEGERS
    splits = tl.arange(0, PADDED_SPLITS)
    is_split = splits < NUM_SPLITS
    places = row * NUM_SPLITS + splits
    maxima = tl.load(split_maxima + places, mask=is_split, other=-float("inf"))
    sums = tl.load(split_sums + places, mask=is_split, other=0.0)
    shift = tl.max(maxima, axis=0)
    shift = tl.where(tl.abs(shift) < float("inf"), shift, 0.0)
    total = tl.sum(tl.where(sums == 0.0, 0.0, sums * tl.exp(maxima - shift)), axis=0)
    tl.store(normalisers + row, shift + tl.log(tl.where(total == 0.0, 1.0, total)))
    best = tl.load(split_best + places, mask=is_split, other=-float("inf"))
    num_nans = tl.sum((best != best).to(tl.int32), axis=0)
    top, place = tl.max(tl.where(best == best, best, -float("inf")), axis=0, return_indices=True)
    tl.store(highest + row, top)
    is_finite = (num_nans == 0) & (tl.abs(top) < float("inf"))
    tl.store(is_number + row, is_finite.to(tl.int32))
    token = tl.load(split_tokens + row * NUM_SPLITS + place)
    tl.store(token_ids + row, tl.where(is_finite, token, 0))
    tl.store(num_candidates + row, 0)
    bound = bound_of_min_p(floats)
    temperature = tl.load(floats + TEMPERATURE)
    is_drawn = is_finite & (temperature >= GREEDY_BELOW)
    if is_drawn & is_filtered(floats, integers, VOCAB):
        blocks = tl.arange(0, PADDED_BLOCKS)
        block_best = tl.load(
            block_maxima + row * NUM_BLOCKS + blocks,
            mask=blocks < NUM_BLOCKS,
            other=-float("inf"),
        )
        distances = tl.abs(top - block_best)
        keys = distances.to(tl.int32, bitcast=True)
        top_k, top_p = tl.load(integers + TOP_K), tl.load(floats + TOP_P)
        if (top_k == 0) | (top_k >= VOCAB):
            inverse_temperature = 1.0 / temperature
            weights = tl.where(keys <= bound, tl.exp(-distances * inverse_temperature), 0.0)
            excess = 0.99 * (1.0 - top_p) * tl.sum(weights, axis=0)  # of no less than there is
            bound = _bound_of_top_p(bound, excess, distances, inverse_temperature, BLOCK)
        elif top_k <= NUM_BLOCKS:
            bound = _bound_of_top_k(bound, top_k, keys)
    tl.store(bounds + row, bound)
