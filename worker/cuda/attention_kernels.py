"""Paged attention in Triton: of rows that decode, of chunks, and the merge of splits.

The pool of a layer is [num_blocks, 2, num_kv_heads, TILE, HEAD_DIM], keys before values: one block
of one head is one tile. A tile of queries holds GROUP heads of consecutive tokens of one sequence,
all that share a head of keys.
"""

import triton
import triton.language as tl

from .work_list_kernels import CHUNK_FIELDS, DECODE_FIELDS, MERGE_FIELDS

ZEROS = tl.constexpr(1024)  # stored at once into a row of padding
SPLITS_AT_ONCE = tl.constexpr(8)  # that are loaded before the first of them is joined


@triton.jit
def _no_keys(BLOCK_M: tl.constexpr, PADDED_DIM: tl.constexpr):
    """The state of a softmax over nothing: its accumulator, maximum, times SCALE, and total."""
    accumulator = tl.zeros([BLOCK_M, PADDED_DIM], dtype=tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    return accumulator, maximum, tl.zeros([BLOCK_M], dtype=tl.float32)


@triton.jit
def _joined(one, other):
    """The state over the keys of both, each of which was begun anew; `one` may be over nothing.

    Written out, for a program that joins in registers and one that joins what others have stored
    have to round alike.
    """
    maximum = tl.maximum(one[1], other[1])
    shift = tl.where(maximum == float("-inf"), 0.0, -maximum)
    decay, factor = tl.exp2(one[1] + shift), tl.exp2(other[1] + shift)
    accumulator = tl.fma(one[0], decay[:, None], other[0] * factor[:, None])
    return accumulator, maximum, tl.fma(one[2], decay, other[2] * factor)


@triton.jit
def _masked(scores, key, positions, window):
    """What a row does not see can't weigh anything."""
    is_seen = key[None, :] <= positions[:, None]
    is_seen &= key[None, :] > positions[:, None] - window
    return tl.where(is_seen, scores, float("-inf"))


@triton.jit
def _attend(
    queries,  # [BLOCK_M, PADDED_DIM], and their positions [BLOCK_M]
    keys,  # those of the layer's head, and the sequence's table of blocks
    span,  # first and last key that any row sees, and the window of each
    tiles,  # the first, the first that some row does not see all of, and the last
    split_tiles,  # where splits begin, at multiples of it
    IS_DECODE: tl.constexpr,
    IS_MASKED: tl.constexpr,
    CONSTANTS: tl.constexpr,  # NUM_KV_HEADS, HEAD_DIM, TILE, SCALE, IS_INTERPRETED
):
    """The state of a softmax over these tiles (Milakov and Gimelshein, arXiv 1805.02867).

    In base 2: SCALE has the factor. A tile of which a row sees nothing leaves its state as it is,
    bit for bit, and a masked tile does the same arithmetic as others. Where rows decode the softmax
    begins anew at each split, as if other programs had the others.
    """
    q, positions = queries
    pool, table = keys
    first_key, last_key, window = span
    first, first_masked, last = tiles
    NUM_KV_HEADS: tl.constexpr = CONSTANTS[0]
    HEAD_DIM: tl.constexpr = CONSTANTS[1]
    TILE: tl.constexpr = CONSTANTS[2]
    SCALE: tl.constexpr = CONSTANTS[3]
    IS_INTERPRETED: tl.constexpr = CONSTANTS[4]
    PADDED_DIM: tl.constexpr = q.shape[1]
    offsets, dims = tl.arange(0, TILE), tl.arange(0, PADDED_DIM)
    is_dim = dims[None, :] < HEAD_DIM
    places = offsets[:, None] * HEAD_DIM + dims[None, :]
    to_values: tl.constexpr = NUM_KV_HEADS * TILE * HEAD_DIM
    if IS_INTERPRETED:  # which can't multiply bfloat16
        q = q.to(tl.float32)
    accumulator, maximum, total = _no_keys(q.shape[0], PADDED_DIM)
    joined = (accumulator, maximum, total)
    split_end = (first // split_tiles + 1) * split_tiles
    block = tl.load(table + first)
    for tile in range(first, last + 1):
        tile_keys = pool + block.to(tl.int64) * (2 * to_values) + places
        # One tile ahead: a load that waits for a load of its own round halves the pipeline's depth.
        block = tl.load(table + tl.minimum(tile + 1, last))
        if HEAD_DIM == PADDED_DIM:
            k = tl.load(tile_keys)
        else:
            k = tl.load(tile_keys, mask=is_dim, other=0.0)
        if IS_INTERPRETED:
            k = k.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        key = tile * TILE + offsets
        if IS_MASKED:  # noqa: SIM114  # what is not known before costs registers
            scores = _masked(scores, key, positions, window)
        elif tile >= first_masked:
            scores = _masked(scores, key, positions, window)
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * SCALE)
        shift = tl.where(new_maximum == float("-inf"), 0.0, -new_maximum)
        decay = tl.exp2(maximum + shift)  # 1, not nearly, where the maximum stays
        weights = tl.exp2(tl.fma(scores, SCALE, shift[:, None]))
        total = tl.fma(total, decay, tl.sum(weights, 1))
        # What no sequence has written may be no number, and zero times it neither.
        is_written = (key >= first_key) & (key <= last_key)
        v = tl.load(tile_keys + to_values, mask=is_written[:, None] & is_dim, other=0.0)
        weights = weights.to(v.dtype)
        if IS_INTERPRETED:
            weights, v = weights.to(tl.float32), v.to(tl.float32)
        accumulator = tl.dot(weights, v, accumulator * decay[:, None], input_precision="ieee")
        maximum = new_maximum
        if IS_DECODE:
            is_end = (tile + 1 == split_end) | (tile == last)
            if is_end:
                joined = _joined(joined, (accumulator, maximum, total))
                accumulator, maximum, total = _no_keys(q.shape[0], PADDED_DIM)
                split_end += split_tiles
    return joined if IS_DECODE else (accumulator, maximum, total)


@triton.jit(
    do_not_specialize=["q_stride", "table_stride", "num_rows", "window"],
    do_not_specialize_on_alignment=["block_tables"],
)
def decode(
    q,  # [num_rows, num_heads, HEAD_DIM], of q_stride heads a row
    pool,  # the layer's
    block_tables,  # int32 [num_tables, table_stride]
    items,  # int32 [_, DECODE_FIELDS]
    counts,  # int32 [NUM_COUNTS]
    out,  # [num_rows, num_heads, HEAD_DIM]
    partials,  # float32 [_, num_heads, HEAD_DIM]: results of splits, not divided by their totals
    states,  # float32 [_, num_heads, 2]: maximum and total of their softmax
    q_stride,
    table_stride,
    num_rows,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    SCALE: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Each item is one split of the keys of few rows, or all of them, which are then joined here.
    Writes zeros to the batch's padding too."""
    num_heads: tl.constexpr = NUM_KV_HEADS * GROUP
    CONSTANTS: tl.constexpr = (NUM_KV_HEADS, HEAD_DIM, TILE, SCALE, IS_INTERPRETED)
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    dims = tl.arange(0, PADDED_DIM)
    size: tl.constexpr = num_heads * HEAD_DIM
    for row in range(tl.load(counts + 3) + program, num_rows, num_programs):
        for first in range(0, size, ZEROS):
            place = first + tl.arange(0, ZEROS)
            zeros = tl.zeros([ZEROS], dtype=out.dtype.element_ty)
            tl.store(out + tl.cast(row, tl.int64) * size + place, zeros, mask=place < size)

    lanes = tl.arange(0, BLOCK_M)
    token = lanes // GROUP
    for index in range(program, tl.load(counts) * NUM_KV_HEADS, num_programs):
        kv_head = index % NUM_KV_HEADS
        item = items + (index // NUM_KV_HEADS) * DECODE_FIELDS
        row, num_own = tl.load(item), tl.load(item + 1)
        position, table_row = tl.load(item + 2), tl.load(item + 3)
        first, end = tl.load(item + 4), tl.load(item + 5)
        split_tiles = tl.load(item + 8)
        last_key = position + num_own - 1
        is_own = (token < num_own)[:, None] & (dims < HEAD_DIM)[None, :]
        head = kv_head * GROUP + lanes % GROUP
        rows = (row + token).to(tl.int64)
        places = (rows * q_stride + head)[:, None] * HEAD_DIM + dims[None, :]
        positions = tl.minimum(position + token, last_key)
        queries = (tl.load(q + places, mask=is_own, other=0.0), positions)
        table = block_tables + table_row.to(tl.int64) * table_stride
        keys = (pool + kv_head * (TILE * HEAD_DIM), table)
        span = (tl.maximum(position - window + 1, 0), last_key, window)
        tiles = (first, first, end - 1)
        accumulator, maximum, total = _attend(
            queries, keys, span, tiles, split_tiles, True, True, CONSTANTS
        )
        # Read again, and volatile so that nothing is kept: the loop needs the registers.
        rows = (tl.load(item, volatile=True) + token).to(tl.int64)
        is_row = token < tl.load(item + 1, volatile=True)
        is_own = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        partial, num_splits = tl.load(item + 6), tl.load(item + 7)
        if num_splits == 1:
            result = (accumulator / total[:, None]).to(out.dtype.element_ty)
            places = (rows * num_heads + head)[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out + places, result, mask=is_own)
        else:
            place = (partial + token * num_splits).to(tl.int64) * num_heads + head
            tl.store(partials + place[:, None] * HEAD_DIM + dims[None, :], accumulator, mask=is_own)
            tl.store(states + place * 2, maximum, mask=is_row)
            tl.store(states + place * 2 + 1, total, mask=is_row)


@triton.jit(
    do_not_specialize=["q_stride", "table_stride", "window"],
    do_not_specialize_on_alignment=["block_tables"],
)
def chunk(
    q,  # [num_rows, num_heads, HEAD_DIM], of q_stride heads a row
    pool,  # the layer's
    block_tables,  # int32 [num_tables, table_stride]
    items,  # int32 [_, CHUNK_FIELDS]
    counts,  # int32 [NUM_COUNTS]
    out,  # [num_rows, num_heads, HEAD_DIM]
    q_stride,
    table_stride,
    window,
    HAS_WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    SCALE: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Each item is up to BLOCK_M // GROUP rows of one sequence, with all keys that they see.

    They differ too much to be dealt out: a program takes the next one when it has done one.
    """
    num_heads: tl.constexpr = NUM_KV_HEADS * GROUP
    CONSTANTS: tl.constexpr = (NUM_KV_HEADS, HEAD_DIM, TILE, SCALE, IS_INTERPRETED)
    num_programs, num_items = tl.num_programs(0), tl.load(counts + 1) * NUM_KV_HEADS
    dims, lanes = tl.arange(0, PADDED_DIM), tl.arange(0, BLOCK_M)
    token = lanes // GROUP
    index = tl.atomic_add(counts + 4, 1, sem="relaxed")
    while index < num_items:
        claimed = tl.atomic_add(counts + 4, 1, sem="relaxed")  # while this one is computed
        kv_head = index % NUM_KV_HEADS
        item = items + (index // NUM_KV_HEADS) * CHUNK_FIELDS
        row, num_own = tl.load(item), tl.load(item + 1)
        position, table_row = tl.load(item + 2), tl.load(item + 3)
        last_key = position + num_own - 1
        is_own = (token < num_own)[:, None] & (dims < HEAD_DIM)[None, :]
        head = kv_head * GROUP + lanes % GROUP
        rows = (row + token).to(tl.int64)
        places = (rows * q_stride + head)[:, None] * HEAD_DIM + dims[None, :]
        positions = tl.minimum(position + token, last_key)
        queries = (tl.load(q + places, mask=is_own, other=0.0), positions)
        table = block_tables + table_row.to(tl.int64) * table_stride
        keys = (pool + kv_head * (TILE * HEAD_DIM), table)
        first_key = tl.maximum(position - window + 1, 0)
        span, first = (first_key, last_key, window), first_key // TILE
        tiles = (first, (position + 1) // TILE, last_key // TILE)  # without a window
        accumulator, _, total = _attend(queries, keys, span, tiles, 1, False, HAS_WINDOW, CONSTANTS)
        result = (accumulator / total[:, None]).to(out.dtype.element_ty)
        # Read again, and volatile so that nothing is kept: the loop needs the registers.
        rows = (tl.load(item, volatile=True) + token).to(tl.int64)
        is_own = (token < tl.load(item + 1, volatile=True))[:, None] & (dims < HEAD_DIM)[None, :]
        places = (rows * num_heads + head)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + places, result, mask=is_own)
        index = claimed
    if index == num_items + num_programs - 1:  # every program has found that none is left
        tl.store(counts + 4, 0)


@triton.jit
def merge(
    items,  # int32 [_, MERGE_FIELDS]
    counts,  # int32 [NUM_COUNTS]
    partials,  # float32 [_, NUM_HEADS, HEAD_DIM]
    states,  # float32 [_, NUM_HEADS, 2]
    out,  # [num_rows, NUM_HEADS, HEAD_DIM]
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """Each item is one row whose splits several programs did; a program does one head at a time."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    dims = tl.arange(0, PADDED_DIM)[None, :]
    one = tl.arange(0, 1)
    for index in range(program, tl.load(counts + 2) * NUM_HEADS, num_programs):
        head = index % NUM_HEADS
        item = items + (index // NUM_HEADS) * MERGE_FIELDS
        row, partial, num_splits = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        joined = _no_keys(1, PADDED_DIM)
        for first in range(0, num_splits, SPLITS_AT_ONCE):
            for offset in tl.static_range(SPLITS_AT_ONCE):
                split = first + offset + one
                is_split = split < num_splits  # one that is not there changes nothing
                state = (partial + split).to(tl.int64) * NUM_HEADS + head
                is_dim = is_split[:, None] & (dims < HEAD_DIM)
                place = partials + state[:, None] * HEAD_DIM + dims
                accumulator = tl.load(place, mask=is_dim, other=0.0)
                maximum = tl.load(states + state * 2, mask=is_split, other=float("-inf"))
                total = tl.load(states + state * 2 + 1, mask=is_split, other=0.0)
                joined = _joined(joined, (accumulator, maximum, total))
        result = (joined[0] / joined[2][:, None]).to(out.dtype.element_ty)
        place = out + (row.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + dims
        tl.store(place, result, mask=dims < HEAD_DIM)
