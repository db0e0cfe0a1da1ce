"""The plan of a step's attention in Triton: which pieces of work there are, in lists."""

import triton
import triton.language as tl

# Items of decode, chunk and merge; rows that belong to a sequence; chunks that were claimed.
NUM_COUNTS = tl.constexpr(8)  # a multiple of 16 bytes
DECODE_FIELDS = tl.constexpr(12)  # 9, and what makes it a multiple of 16 bytes
CHUNK_FIELDS = tl.constexpr(4)
MERGE_FIELDS = tl.constexpr(4)


@triton.jit
def _split(
    rows,
    context_len,
    window,
    TILE: tl.constexpr,
    SPLIT_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Of sequences or one: the tiles that its rows see, how many make a split, and the splits.

    They begin at multiples of their size, which depends on the first row's length alone. One that
    is just too long for a single split is cut finer, or few of them would keep few processors busy.
    """
    first_tile = tl.maximum(context_len - rows - window + 1, 0) // TILE
    end_tile = (context_len + TILE - 1) // TILE
    num_tiles = (context_len - rows + TILE) // TILE - first_tile  # that the first row sees
    # Drafts reach into one tile more: whether they do must not move a split.
    fewest = (num_tiles + MAX_SPLITS - 1) // (MAX_SPLITS - 1)
    least = (SPLIT_TILES + 1) // 2
    finer = tl.minimum(tl.maximum(num_tiles // (2 * SPLIT_TILES), least), SPLIT_TILES)
    split_tiles = tl.maximum(fewest, tl.where(num_tiles > SPLIT_TILES, finer, SPLIT_TILES))
    first_split = first_tile // split_tiles
    end_split = (end_tile + split_tiles - 1) // split_tiles
    return first_tile, end_tile, split_tiles, first_split, end_split - first_split


@triton.jit
def _is_short(num_tiles, all_tiles, num_programs, NUM_KV_HEADS: tl.constexpr):
    """Whether a sequence that decodes keeps a program busy for no more than a third of what each
    has to do: then one program does all of its splits, and nothing is left to be merged."""
    return 3 * num_tiles * num_programs <= all_tiles * NUM_KV_HEADS


@triton.jit(
    do_not_specialize=["num_programs"],
    do_not_specialize_on_alignment=["num_sequences", "query_starts", "context_lens", "table_rows"],
)
def plan(
    num_sequences,  # int32 [1]
    query_starts,  # int32 [MAX_SEQUENCES + 1]
    context_lens,  # int32 [MAX_SEQUENCES]
    table_rows,  # int32 [MAX_SEQUENCES]
    windows,  # int32 [num_windows]
    counts,  # int32 [num_windows, NUM_COUNTS]
    decode_items,  # int32 [num_windows, DECODE_CAPACITY, DECODE_FIELDS]
    chunk_items,  # int32 [num_windows, CHUNK_CAPACITY, CHUNK_FIELDS]
    merge_items,  # int32 [num_windows, MERGE_CAPACITY, MERGE_FIELDS]
    num_programs,  # that decode
    NUM_KV_HEADS: tl.constexpr,
    PADDED_SEQUENCES: tl.constexpr,
    DECODE_CAPACITY: tl.constexpr,
    CHUNK_CAPACITY: tl.constexpr,
    MERGE_CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    DECODE_ROWS: tl.constexpr,
    CHUNK_ROWS: tl.constexpr,
    SPLIT_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Program (s, w) enters what sequence s has to do in layers of window w into their lists.

    It finds its places from the lengths of all sequences before it.
    """
    sequence, window_index = tl.program_id(0), tl.program_id(1)
    window = tl.load(windows + window_index)
    count = tl.load(num_sequences)
    if sequence >= tl.maximum(count, 1):
        return
    counts += window_index * NUM_COUNTS
    decode_items += window_index * DECODE_CAPACITY * DECODE_FIELDS
    chunk_items += window_index * CHUNK_CAPACITY * CHUNK_FIELDS
    merge_items += window_index * MERGE_CAPACITY * MERGE_FIELDS

    index = tl.arange(0, PADDED_SEQUENCES)
    starts = tl.load(query_starts + index, mask=index < count, other=0)
    rows = tl.load(query_starts + index + 1, mask=index < count, other=0) - starts
    lens = tl.load(context_lens + index, mask=index < count, other=0)
    firsts, ends, _, _, splits = _split(rows, lens, window, TILE, SPLIT_TILES, MAX_SPLITS)
    is_decode = (rows > 0) & (rows <= DECODE_ROWS)
    tiles = tl.where(is_decode, ends - firsts, 0)
    all_tiles = tl.sum(tiles)
    is_short = _is_short(tiles, all_tiles, num_programs, NUM_KV_HEADS)
    splits = tl.where(is_decode, tl.where(is_short, 1, splits), 0)
    merges = tl.where(splits > 1, rows, 0)
    chunks = tl.where(rows > DECODE_ROWS, (rows + CHUNK_ROWS - 1) // CHUNK_ROWS, 0)
    if sequence == 0:
        tl.store(counts, tl.sum(splits))
        tl.store(counts + 1, tl.sum(chunks))
        tl.store(counts + 2, tl.sum(merges))
        tl.store(counts + 3, tl.sum(rows))
    if sequence < count:
        is_before = index < sequence
        row = tl.load(query_starts + sequence)
        num_rows = tl.load(query_starts + sequence + 1) - row
        context_len = tl.load(context_lens + sequence)
        table_row = tl.load(table_rows + sequence)
        position = context_len - num_rows
        first_tile, end_tile, split_tiles, first_split, num_splits = _split(
            num_rows, context_len, window, TILE, SPLIT_TILES, MAX_SPLITS
        )
        if num_rows > DECODE_ROWS:
            num_chunks = (num_rows + CHUNK_ROWS - 1) // CHUNK_ROWS
            chunk_item = chunk_items + tl.sum(tl.where(is_before, chunks, 0)) * CHUNK_FIELDS
            for chunk_index in range(0, num_chunks):
                offset = (num_chunks - 1 - chunk_index) * CHUNK_ROWS  # the longest are begun first
                tl.store(chunk_item, row + offset)
                tl.store(chunk_item + 1, tl.minimum(num_rows - offset, CHUNK_ROWS))
                tl.store(chunk_item + 2, position + offset)
                tl.store(chunk_item + 3, table_row)
                chunk_item += CHUNK_FIELDS
        elif num_rows > 0:
            if _is_short(end_tile - first_tile, all_tiles, num_programs, NUM_KV_HEADS):
                first_split, num_splits = 0, 1
            split = tl.arange(0, MAX_SPLITS)
            is_split = split < num_splits
            split_start = (first_split + split) * split_tiles
            is_last = split == num_splits - 1
            split_end = tl.where(is_last, end_tile, split_start + split_tiles)
            partial = tl.sum(tl.where(is_before, merges * splits, 0))
            # The last of a sequence may be short: those of all sequences are begun last.
            others = tl.maximum(splits - 1, 0)
            place = tl.sum(tl.where(is_before, others, 0)) + split
            last = tl.sum(others) + tl.sum(tl.where(is_before, splits - others, 0))
            place = tl.where(is_last, last, place)
            item = decode_items + place * DECODE_FIELDS
            tl.store(item, row, mask=is_split)
            tl.store(item + 1, num_rows, mask=is_split)
            tl.store(item + 2, position, mask=is_split)
            tl.store(item + 3, table_row, mask=is_split)
            tl.store(item + 4, tl.maximum(split_start, first_tile), mask=is_split)
            tl.store(item + 5, split_end, mask=is_split)
            tl.store(item + 6, partial + split, mask=is_split)
            tl.store(item + 7, num_splits, mask=is_split)
            tl.store(item + 8, split_tiles, mask=is_split)
            if num_splits > 1:
                merge_item = merge_items + tl.sum(tl.where(is_before, merges, 0)) * MERGE_FIELDS
                for own in range(0, num_rows):
                    tl.store(merge_item, row + own)
                    tl.store(merge_item + 1, partial + own * num_splits)
                    tl.store(merge_item + 2, num_splits)
                    merge_item += MERGE_FIELDS
