"""Chooses a token for each row of logits, with no sort.

scan: draws from the rows that filter by distance alone, and lists candidates of the others;
choose: finds the others' limit among their candidates, and draws. Gumbel-max: the highest sum of
a scaled logit and a Gumbel variate comes as often as its probability says.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .logit_kernels import bound_of_min_p, is_adjusted_row, is_filtered
from .random_kernels import MAX_GUMBEL, MIN_GUMBEL, gumbels_of_range, gumbels_of_tokens
from .sampling_columns import (
    GREEDY_BELOW,
    NUM_FLOATS,
    NUM_INTEGERS,
    NUM_OUTPUT_TOKENS,
    SEED_HIGH,
    SEED_LOW,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)

UNIT = tl.constexpr(1099511627776.0)  # 2^40, the highest token's weight
NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _where_so(mask, flag):
    """The mask where a scalar flag is 1, nothing where it is 0. The interpreter has no masks of
    scalars."""
    return (mask.to(tl.int32) * flag) != 0


@triton.jit
def _distances(logits, adjusted, is_adjusted, token_ids, mask, top):
    """How far below the row's highest logit these tokens are; their order is that of their bits,
    for which there must be no minus zero."""
    from_adjusted = _where_so(mask, is_adjusted)
    as_they_came = _where_so(mask, 1 - is_adjusted)
    x = tl.load(logits + token_ids, mask=as_they_came, other=-float("inf"))
    y = tl.load(adjusted + token_ids, mask=from_adjusted, other=-float("inf"))
    return tl.abs(top - tl.where(from_adjusted, y, x.to(tl.float32)))


@triton.jit
def _weights(distances, inverse_temperature):
    """Probabilities over the highest one's, in fixed point: sums have the same bits in any
    order."""
    return (tl.exp(-distances * inverse_temperature) * UNIT).to(tl.int64)


@triton.jit
def scan_kernel(
    logits,  # [num_rows, VOCAB]
    num_valid,  # [1]
    table_rows,  # [num_rows]
    num_drafts,  # [num_rows]
    floats,  # [num_tables, NUM_FLOATS]
    integers,  # [num_tables, NUM_INTEGERS]
    adjusted,  # [num_rows, VOCAB]
    highest,  # [num_rows]
    bounds,  # [num_rows]
    is_number,  # [num_rows]
    split_scores,  # [num_rows, NUM_SPLITS], the best of a draw from all
    split_tokens,  # [num_rows, NUM_SPLITS], its token
    split_masses,  # [num_rows, NUM_SPLITS], int64, of all that min_p leaves
    num_candidates,  # [num_rows]
    candidates,  # [num_rows, CAPACITY], token ids in any order; the count goes on beyond
    VOCAB: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if row >= tl.load(num_valid):
        return
    table = tl.load(table_rows + row).to(tl.int64)
    floats += table * NUM_FLOATS
    integers += table * NUM_INTEGERS
    temperature = tl.load(floats + TEMPERATURE)
    if (temperature < GREEDY_BELOW) | (tl.load(is_number + row) == 0):
        return
    first = split * SPLIT
    token_ids = first + tl.arange(0, SPLIT)
    is_inside = token_ids < VOCAB
    distances = _distances(
        logits + row * VOCAB,
        adjusted + row * VOCAB,
        is_adjusted_row(floats, integers),
        token_ids,
        is_inside,
        tl.load(highest + row),
    )
    bound = tl.load(bounds + row)
    inverse_temperature = 1.0 / temperature
    is_kept = (distances.to(tl.int32, bitcast=True) <= bound) & is_inside
    if is_filtered(floats, integers, VOCAB):
        is_possible = distances.to(tl.int32, bitcast=True) <= bound_of_min_p(floats)
        weights = tl.where(is_possible, _weights(distances, inverse_temperature), 0)
        tl.store(split_masses + row * NUM_SPLITS + split, tl.sum(weights, axis=0))
        num_kept = tl.sum(is_kept.to(tl.int32), axis=0)
        if num_kept > 0:
            start = tl.atomic_add(num_candidates + row, num_kept)
            places = start + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
            is_room = is_kept & (places < CAPACITY)
            tl.store(candidates + row * CAPACITY + places, token_ids, mask=is_room)
    else:
        score = -float("inf")
        token = first
        # A token so far below the highest loses to it, whatever numbers the two draw.
        is_near = is_kept & (distances * inverse_temperature <= MAX_GUMBEL - MIN_GUMBEL)
        if tl.sum(is_near.to(tl.int32), axis=0) > 0:
            output_index = tl.load(integers + NUM_OUTPUT_TOKENS) + tl.load(num_drafts + row)
            seed_low, seed_high = tl.load(integers + SEED_LOW), tl.load(integers + SEED_HIGH)
            noise = gumbels_of_range(first, SPLIT, output_index, seed_low, seed_high)
            scores = tl.where(is_near, noise - distances * inverse_temperature, -float("inf"))
            score, place = tl.max(scores, axis=0, return_indices=True)
            token = first + place
        tl.store(split_scores + row * NUM_SPLITS + split, score)
        tl.store(split_tokens + row * NUM_SPLITS + split, token)


@triton.jit
def _candidates_at(start, size, candidates, is_listed, TILE: tl.constexpr):
    """Token ids of a tile of those listed, or, where they were too many to list, of all."""
    index = start + tl.arange(0, TILE)
    is_inside = index < size
    in_list = _where_so(is_inside, is_listed)
    return tl.where(in_list, tl.load(candidates + index, mask=in_list, other=0), index), is_inside


@triton.jit
def _ranks(distances, token_ids, is_inside, ID_BITS: tl.constexpr):
    """Ascending from the likeliest, of equals from the lowest token id: no two are the same."""
    keys = distances.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(is_inside, (keys << ID_BITS) | token_ids.to(tl.int64), NEVER)


@triton.jit
def _find_limit(
    limit,
    target,
    logits,
    adjusted,
    is_adjusted,
    top,
    inverse_temperature,
    candidates,
    size,
    is_listed,
    BY_COUNT: tl.constexpr,
    ID_BITS: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The rank, at most `limit`, up to which there are `target` tokens, or there is `target` mass;
    `limit` where even that is not enough. And the mass up to it.

    PIVOTS at a time cut the range of possible ranks until it holds one token.
    """
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
            token_ids, is_inside = _candidates_at(start, size, candidates, is_listed, TILE)
            distances = _distances(logits, adjusted, is_adjusted, token_ids, is_inside, top)
            ranks = _ranks(distances, token_ids, is_inside, ID_BITS)
            weights = _weights(distances, inverse_temperature)
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
def _draw(
    limit,
    logits,
    adjusted,
    is_adjusted,
    top,
    inverse_temperature,
    candidates,
    size,
    is_listed,
    output_index,
    seed_low,
    seed_high,
    VOCAB: tl.constexpr,
    ID_BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A token among the candidates up to the limit, in whatever order they are listed."""
    best = tl.full([TILE], -float("inf"), tl.float32)
    best_ids = tl.full([TILE], VOCAB, tl.int32)
    for start in range(0, size, TILE):
        ids, is_inside = _candidates_at(start, size, candidates, is_listed, TILE)
        distances = _distances(logits, adjusted, is_adjusted, ids, is_inside, top)
        is_kept = _ranks(distances, ids, is_inside, ID_BITS) <= limit
        noise = gumbels_of_tokens(ids, output_index, seed_low, seed_high)
        scores = tl.where(is_kept, noise - distances * inverse_temperature, -float("inf"))
        is_better = (scores > best) | ((scores == best) & (ids < best_ids))
        best_ids = tl.where(is_better, ids, best_ids)
        best = tl.where(is_better, scores, best)
    is_best = best == tl.max(best, axis=0)
    return tl.min(tl.where(is_best, best_ids, VOCAB), axis=0)


@triton.jit
def choose_kernel(
    logits,  # [num_rows, VOCAB]
    num_valid,  # [1]
    table_rows,  # [num_rows]
    num_drafts,  # [num_rows]
    floats,  # [num_tables, NUM_FLOATS]
    integers,  # [num_tables, NUM_INTEGERS]
    adjusted,  # [num_rows, VOCAB]
    highest,  # [num_rows]
    normalisers,  # [num_rows]
    bounds,  # [num_rows]
    is_number,  # [num_rows]
    split_scores,  # [num_rows, NUM_SPLITS]
    split_tokens,  # [num_rows, NUM_SPLITS]
    split_masses,  # [num_rows, NUM_SPLITS]
    num_candidates,  # [num_rows]
    candidates,  # [num_rows, CAPACITY]
    limits,  # [num_rows], int64, the last rank that was kept
    token_ids,  # [num_rows], in and out: the best there
    logprobs,  # [num_rows]
    VOCAB: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
    ID_BITS: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(num_valid):
        return
    if tl.load(is_number + row) == 0:
        tl.store(logprobs + row, float("nan"))
        return
    table = tl.load(table_rows + row).to(tl.int64)
    floats += table * NUM_FLOATS
    integers += table * NUM_INTEGERS
    logits += row * VOCAB
    adjusted += row * VOCAB
    candidates += row * CAPACITY
    temperature = tl.load(floats + TEMPERATURE)
    token = tl.load(token_ids + row)
    splits = tl.arange(0, PADDED_SPLITS)
    is_split = splits < NUM_SPLITS
    if temperature >= GREEDY_BELOW:
        limit = ((tl.load(bounds + row).to(tl.int64) + 1) << ID_BITS) - 1
        if is_filtered(floats, integers, VOCAB):
            is_adjusted = is_adjusted_row(floats, integers)
            inverse_temperature = 1.0 / temperature
            top = tl.load(highest + row)
            top_k, top_p = tl.load(integers + TOP_K), tl.load(floats + TOP_P)
            size = tl.load(num_candidates + row)
            is_listed = (size <= CAPACITY).to(tl.int32)
            size = tl.where(size <= CAPACITY, size, VOCAB)
            masses = tl.load(split_masses + row * NUM_SPLITS + splits, mask=is_split, other=0)
            mass = tl.sum(masses, axis=0)
            if (top_k > 0) & (top_k < VOCAB):
                limit, mass = _find_limit(
                    limit,
                    top_k.to(tl.int64),
                    logits,
                    adjusted,
                    is_adjusted,
                    top,
                    inverse_temperature,
                    candidates,
                    size,
                    is_listed,
                    True,
                    ID_BITS,
                    TILE,
                    PIVOTS,
                )
            if top_p < 1.0:
                target = tl.ceil(top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
                limit, mass = _find_limit(
                    limit,
                    tl.maximum(target, 1),
                    logits,
                    adjusted,
                    is_adjusted,
                    top,
                    inverse_temperature,
                    candidates,
                    size,
                    is_listed,
                    False,
                    ID_BITS,
                    TILE,
                    PIVOTS,
                )
            token = _draw(
                limit,
                logits,
                adjusted,
                is_adjusted,
                top,
                inverse_temperature,
                candidates,
                size,
                is_listed,
                tl.load(integers + NUM_OUTPUT_TOKENS) + tl.load(num_drafts + row),
                tl.load(integers + SEED_LOW),
                tl.load(integers + SEED_HIGH),
                VOCAB,
                ID_BITS,
                TILE,
            )
        else:
            places = row * NUM_SPLITS + splits
            scores = tl.load(split_scores + places, mask=is_split, other=-float("inf"))
            place = tl.argmax(scores, axis=0)
            token = tl.load(split_tokens + row * NUM_SPLITS + place)
        tl.store(token_ids + row, token)
        tl.store(limits + row, limit)
    chosen = tl.load(logits + token).to(tl.float32)
    tl.store(logprobs + row, chosen - tl.load(normalisers + row))
