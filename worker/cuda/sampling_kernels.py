"""Chooses a token for each row of logits, with no sort.

scan: draws from the rows that filter by distance alone, and lists candidates of the others;
choose: finds the others' limit among their candidates, and draws. Gumbel-max: the highest sum of
a scaled logit and a Gumbel variate comes as often as its probability says.
"""

import triton
import triton.language as tl

from .candidate_kernels import distances_of, draw, find_limit, weights_of
from .logit_kernels import bound_of_min_p, is_adjusted_row, is_filtered
from .random_kernels import MAX_GUMBEL, MIN_GUMBEL, gumbels_of_range
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
    is_adjusted, top = is_adjusted_row(floats, integers), tl.load(highest + row)
    own = (logits + row * VOCAB, adjusted + row * VOCAB, is_adjusted, top)
    distances = distances_of(own, token_ids, is_inside)
    bound = tl.load(bounds + row)
    inverse_temperature = 1.0 / temperature
    is_kept = (distances.to(tl.int32, bitcast=True) <= bound) & is_inside
    if is_filtered(floats, integers, VOCAB):
        is_possible = distances.to(tl.int32, bitcast=True) <= bound_of_min_p(floats)
        weights = tl.where(is_possible, weights_of(distances, inverse_temperature), 0)
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
            top = tl.load(highest + row)
            is_adjusted = is_adjusted_row(floats, integers)
            own = (logits, adjusted, is_adjusted, top)
            inverse_temperature = 1.0 / temperature
            top_k, top_p = tl.load(integers + TOP_K), tl.load(floats + TOP_P)
            size = tl.load(num_candidates + row)
            is_listed = (size <= CAPACITY).to(tl.int32)
            listed = (candidates, tl.where(size <= CAPACITY, size, VOCAB), is_listed)
            masses = tl.load(split_masses + row * NUM_SPLITS + splits, mask=is_split, other=0)
            mass = tl.sum(masses, axis=0)
            if (top_k > 0) & (top_k < VOCAB):
                target = top_k.to(tl.int64)
                limit, mass = find_limit(
                    limit, target, own, inverse_temperature, listed, True, ID_BITS, TILE, PIVOTS
                )
            if top_p < 1.0:
                target = tl.ceil(top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
                target = tl.maximum(target, 1)
                limit, mass = find_limit(
                    limit, target, own, inverse_temperature, listed, False, ID_BITS, TILE, PIVOTS
                )
            output_index = tl.load(integers + NUM_OUTPUT_TOKENS) + tl.load(num_drafts + row)
            noise_of = (output_index, tl.load(integers + SEED_LOW), tl.load(integers + SEED_HIGH))
            token = draw(limit, own, inverse_temperature, listed, noise_of, VOCAB, ID_BITS, TILE)
        else:
            places = row * NUM_SPLITS + splits
            scores = tl.load(split_scores + places, mask=is_split, other=-float("inf"))
            place = tl.argmax(scores, axis=0)
            token = tl.load(split_tokens + row * NUM_SPLITS + place)
        tl.store(token_ids + row, token)
        tl.store(limits + row, limit)
    chosen = tl.load(logits + token).to(tl.float32)
    tl.store(logprobs + row, chosen - tl.load(normalisers + row))
