"""Which of a row's tokens top_k and top_p keep, and a draw from these: by repeated reading of those
that come into question, with no sort."""

import triton
import triton.language as tl

from .random_kernels import gumbels_of_tokens

UNIT = tl.constexpr(1099511627776.0)  # 2^40, the highest token's weight
NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _where_so(mask, flag):
    """The mask where a scalar flag is 1, nothing where it is 0. The interpreter has no masks of
    scalars."""
    return (mask.to(tl.int32) * flag) != 0


@triton.jit
def distances_of(row, token_ids, mask):
    """How far below the row's highest logit these tokens are; their order is that of their bits,
    for which there must be no minus zero. The row: its logits as they came and adjusted, whether
    they are adjusted, the highest."""
    logits, adjusted, is_adjusted, top = row
    from_adjusted = _where_so(mask, is_adjusted)
    as_they_came = _where_so(mask, 1 - is_adjusted)
    x = tl.load(logits + token_ids, mask=as_they_came, other=-float("inf"))
    y = tl.load(adjusted + token_ids, mask=from_adjusted, other=-float("inf"))
    return tl.abs(top - tl.where(from_adjusted, y, x.to(tl.float32)))


@triton.jit
def weights_of(distances, inverse_temperature):
    """Probabilities over the highest one's, in fixed point: sums have the same bits in any
    order."""
    return (tl.exp(-distances * inverse_temperature) * UNIT).to(tl.int64)


@triton.jit
def _candidates_at(start, listed, TILE: tl.constexpr):
    """Token ids of a tile of those listed, or, where they were too many to list, of all."""
    candidates, size, is_listed = listed
    index = start + tl.arange(0, TILE)
    is_inside = index < size
    in_list = _where_so(is_inside, is_listed)
    return tl.where(in_list, tl.load(candidates + index, mask=in_list, other=0), index), is_inside


@triton.jit
def _read(start, row, listed, ID_BITS: tl.constexpr, TILE: tl.constexpr):
    """Token ids of a tile of candidates, their distances, and their ranks: ascending from the
    likeliest, of equals from the lowest token id, so no two are the same."""
    token_ids, is_inside = _candidates_at(start, listed, TILE)
    distances = distances_of(row, token_ids, is_inside)
    keys = distances.to(tl.int32, bitcast=True).to(tl.int64)
    ranks = tl.where(is_inside, (keys << ID_BITS) | token_ids.to(tl.int64), NEVER)
    return token_ids, distances, ranks


@triton.jit
def find_limit(
    limit,
    target,
    row,  # as distances_of takes it
    inverse_temperature,
    listed,  # candidates, how many, and whether they are listed: else they are all tokens
    BY_COUNT: tl.constexpr,
    ID_BITS: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The rank, at most `limit`, up to which there are `target` tokens, or there is `target` mass;
    `limit` where even that is not enough. And the mass up to it.

    PIVOTS at a time cut the range of possible ranks until it holds one token.
    """
    size = listed[1]
    numbers = tl.arange(0, PIVOTS)
    low = tl.full([], -1, tl.int64)
    num_low = tl.full([], 0, tl.int32)
    mass = tl.full([], 0, tl.int64)
    is_open = limit >= 0
    while is_open:
        width = (limit - low + PIVOTS - 1) // PIVOTS
        pivots = tl.minimum(low + width * (numbers + 1).to(tl.int64), limit)
        counts = tl.zeros([PIVOTS], tl.int32)
        masses = tl.zeros([PIVOTS], tl.int64)
        for start in range(0, size, TILE):
            _, distances, ranks = _read(start, row, listed, ID_BITS, TILE)
            weights = weights_of(distances, inverse_temperature)
            is_within = ranks[None, :] <= pivots[:, None]  # [PIVOTS, TILE]
            counts += tl.sum(is_within.to(tl.int32), axis=1)
            masses += tl.sum(tl.where(is_within, weights[None, :], 0), axis=1)
        sums = counts.to(tl.int64) if BY_COUNT else masses
        num_short = tl.sum((sums < target).to(tl.int32), axis=0)
        chosen = tl.minimum(num_short, PIVOTS - 1)
        is_before = numbers == chosen - 1
        low = tl.where(chosen > 0, tl.sum(tl.where(is_before, pivots, 0), axis=0), low)
        num_low = tl.where(chosen > 0, tl.sum(tl.where(is_before, counts, 0), axis=0), num_low)
        limit = tl.sum(tl.where(numbers == chosen, pivots, 0), axis=0)
        mass = tl.sum(tl.where(numbers == chosen, masses, 0), axis=0)
        num_high = tl.sum(tl.where(numbers == chosen, counts, 0), axis=0)
        reached = tl.sum(tl.where(numbers == chosen, sums, 0), axis=0)
        is_open = (limit - low > 1) & (num_high - num_low > 1) & (reached > target)
    return limit, mass


@triton.jit
def draw(
    limit,
    row,
    inverse_temperature,
    listed,
    noise_of,  # output index, both halves of the seed
    VOCAB: tl.constexpr,
    ID_BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A token among the candidates up to the limit, in whatever order they are listed."""
    size = listed[1]
    output_index, seed_low, seed_high = noise_of
    best = tl.full([TILE], -float("inf"), tl.float32)
    best_ids = tl.full([TILE], VOCAB, tl.int32)
    for start in range(0, size, TILE):
        ids, distances, ranks = _read(start, row, listed, ID_BITS, TILE)
        noise = gumbels_of_tokens(ids, output_index, seed_low, seed_high)
        scores = tl.where(ranks <= limit, noise - distances * inverse_temperature, -float("inf"))
        is_better = (scores > best) | ((scores == best) & (ids < best_ids))
        best_ids = tl.where(is_better, ids, best_ids)
        best = tl.where(is_better, scores, best)
    is_best = best == tl.max(best, axis=0)
    return tl.min(tl.where(is_best, best_ids, VOCAB), axis=0)
