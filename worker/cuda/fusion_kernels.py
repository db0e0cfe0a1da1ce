"""What a decoder computes between its matrix products, one pass over memory each, in float32.

Rows and heads are contiguous; sizes are constants, so that Triton sees how far addresses are
aligned and moves 16 bytes at a time wherever they allow it.
"""

import triton
import triton.language as tl

from .rounding_kernels import rounded


@triton.jit
def add_and_norm_kernel(
    x,  # [num_rows, SIZE], updated in place
    delta,  # [num_rows, SIZE], not read without HAS_DELTA
    weight,  # [SIZE]
    out,  # [num_rows, SIZE]
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds SIZE
    HAS_DELTA: tl.constexpr,
):
    """Program: a row."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, BLOCK)
    is_inside = columns < SIZE
    total = tl.load(x + row + columns, mask=is_inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        total += tl.load(delta + row + columns, mask=is_inside, other=0.0).to(tl.float32)
        kept = rounded(total, x.dtype.element_ty)
        tl.store(x + row + columns, kept, mask=is_inside)
        total = kept.to(tl.float32)  # the norm is of what later layers will read
    mean_square = tl.sum(total * total, axis=0) / SIZE
    normed = total * tl.rsqrt(mean_square + eps) * scale
    tl.store(out + row + columns, rounded(normed, out.dtype.element_ty), mask=is_inside)


@triton.jit
def silu_and_multiply_kernel(
    gate_up,  # [num_rows, 2 * SIZE], gates first
    out,  # [num_rows, SIZE]
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: a row, and BLOCK of its columns."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < SIZE
    gate = tl.load(gate_up + 2 * row + columns, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + 2 * row + SIZE + columns, mask=is_inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row + columns, rounded(product, out.dtype.element_ty), mask=is_inside)


@triton.jit
def rotate_and_write_kernel(
    qkv,  # [num_rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]
    norm_weight,  # [NUM_HEADS + NUM_KV_HEADS, HEAD_DIM], not read without HAS_NORM
    cos,  # [max_model_len, HEAD_DIM / 2]
    sin,  # [max_model_len, HEAD_DIM / 2]
    positions,  # [num_rows]
    slots,  # [num_rows]
    queries,  # [num_rows, NUM_HEADS, HEAD_DIM]
    pool,  # [num_blocks + 1, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,  # heads of one program
    PAIRS: tl.constexpr,  # the power of two that holds HEAD_DIM / 2
    HAS_NORM: tl.constexpr,
):
    """Program: a row, and TILE heads of its queries and keys or of its values."""
    NUM_ROTATED: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    ROTATED_TILES: tl.constexpr = (NUM_ROTATED + TILE - 1) // TILE
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    pairs = tl.arange(0, PAIRS)[None, :]
    is_pair = pairs < HALF

    source = qkv + row * ((NUM_ROTATED + NUM_KV_HEADS) * HEAD_DIM)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    place = (slot // BLOCK_SIZE) * (2 * NUM_KV_HEADS * BLOCK_SIZE) + slot % BLOCK_SIZE
    keys = pool + place * HEAD_DIM  # of head 0; each further head is a block's rows further on
    HEAD_STRIDE: tl.constexpr = BLOCK_SIZE * HEAD_DIM

    if tile < ROTATED_TILES:
        heads = (tile * TILE + tl.arange(0, TILE))[:, None]
        is_inside = (heads < NUM_ROTATED) & is_pair
        offsets = heads * HEAD_DIM + pairs
        first = tl.load(source + offsets, mask=is_inside, other=0.0).to(tl.float32)
        second = tl.load(source + offsets + HALF, mask=is_inside, other=0.0).to(tl.float32)
        # Every head loads the angles: one copy would go round through shared memory, 7 barriers.
        angles = position * HALF + tl.broadcast_to(pairs, (TILE, PAIRS))
        cosine = tl.load(cos + angles, mask=is_inside, other=0.0)
        sine = tl.load(sin + angles, mask=is_inside, other=0.0)
        if HAS_NORM:
            weights = norm_weight + offsets
            first_weight = tl.load(weights, mask=is_inside, other=0.0).to(tl.float32)
            second_weight = tl.load(weights + HALF, mask=is_inside, other=0.0).to(tl.float32)
            mean_square = tl.sum(first * first + second * second, axis=1) / HEAD_DIM
            factor = tl.rsqrt(mean_square + eps)[:, None]
            first *= factor * first_weight
            second *= factor * second_weight
        rotated_first = tl.fma(first, cosine, -(second * sine))  # which is fused is our choice
        rotated_second = tl.fma(second, cosine, first * sine)

        is_query = is_inside & (heads < NUM_HEADS)
        target = queries + row * (NUM_HEADS * HEAD_DIM) + offsets
        tl.store(target, rounded(rotated_first, queries.dtype.element_ty), mask=is_query)
        tl.store(target + HALF, rounded(rotated_second, queries.dtype.element_ty), mask=is_query)
        is_key = is_inside & (heads >= NUM_HEADS)
        target = keys + (heads - NUM_HEADS) * HEAD_STRIDE + pairs
        tl.store(target, rounded(rotated_first, pool.dtype.element_ty), mask=is_key)
        tl.store(target + HALF, rounded(rotated_second, pool.dtype.element_ty), mask=is_key)
    else:
        heads = ((tile - ROTATED_TILES) * TILE + tl.arange(0, TILE))[:, None]
        is_inside = (heads < NUM_KV_HEADS) & is_pair
        offsets = (NUM_ROTATED + heads) * HEAD_DIM + pairs
        low = tl.load(source + offsets, mask=is_inside)
        high = tl.load(source + offsets + HALF, mask=is_inside)
        target = keys + (NUM_KV_HEADS + heads) * HEAD_STRIDE + pairs
        tl.store(target, low.to(pool.dtype.element_ty), mask=is_inside)
        tl.store(target + HALF, high.to(pool.dtype.element_ty), mask=is_inside)
