"""A step's flat rows from what the device knows of its requests, and sampled tokens back to it."""

import triton
import triton.language as tl

SIZES = ["num_rows", "max_num_seqs", "max_model_len", "max_blocks", "null_slot"]


@triton.jit(do_not_specialize=["count"])
def put_kernel(
    table,
    places,  # [count]
    values,  # [count]
    count,
    NUMBERS: tl.constexpr,
):
    """Program: NUMBERS of the values, each to its place in the flat table."""
    index = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    is_real = index < count
    place = tl.load(places + index, mask=is_real, other=0)
    tl.store(table + place, tl.load(values + index, mask=is_real, other=0), mask=is_real)


@triton.jit(do_not_specialize=SIZES)  # one compilation serves every captured number of rows
def expand_kernel(
    num_sequences,  # [1]
    query_starts,  # [max_num_seqs + 1]
    first_positions,  # [max_num_seqs]
    table_rows,  # [max_num_seqs]
    token_table,  # [num_tables, max_model_len]
    block_tables,  # [num_tables, max_blocks]
    input_ids,  # [num_rows]
    positions,  # [num_rows]
    slots,  # [num_rows]
    context_lens,  # [max_num_seqs]
    last_rows,  # [max_num_seqs]
    num_rows,
    max_num_seqs,
    max_model_len,
    max_blocks,
    null_slot,
    BLOCK_SIZE: tl.constexpr,
    STEPS: tl.constexpr,  # halvings that leave one of max_num_seqs
    ROWS: tl.constexpr,
):
    """Program: ROWS of the rows, and as many of the sequences."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    count = tl.load(num_sequences)
    is_real = rows < tl.load(query_starts + count)

    sequence = tl.zeros((ROWS,), tl.int32)  # its rows begin at this one or before ...
    end = sequence + count  # ... and those of this one after
    for _ in range(STEPS):
        middle = (sequence + end) >> 1
        begins_before = tl.load(query_starts + middle, mask=is_real, other=0) <= rows
        sequence = tl.where(begins_before, middle, sequence)
        end = tl.where(begins_before, end, middle)

    start = tl.load(query_starts + sequence, mask=is_real, other=0)
    first = tl.load(first_positions + sequence, mask=is_real, other=0)
    table = tl.load(table_rows + sequence, mask=is_real, other=0).to(tl.int64)
    position = first + rows - start
    token = tl.load(token_table + table * max_model_len + position, mask=is_real, other=0)
    places = block_tables + table * max_blocks + position // BLOCK_SIZE
    block = tl.load(places, mask=is_real, other=0)
    slot = block * BLOCK_SIZE + position % BLOCK_SIZE

    is_row = rows < num_rows
    tl.store(input_ids + rows, token, mask=is_row)
    tl.store(positions + rows, tl.where(is_real, position, 0), mask=is_row)
    tl.store(slots + rows, tl.where(is_real, slot, null_slot), mask=is_row)

    is_sequence = rows < count
    begin = tl.load(query_starts + rows, mask=is_sequence, other=0)
    stop = tl.load(query_starts + rows + 1, mask=is_sequence, other=0)
    computed = tl.load(first_positions + rows, mask=is_sequence, other=0)
    tl.store(context_lens + rows, computed + stop - begin, mask=rows < max_num_seqs)
    tl.store(last_rows + rows, tl.maximum(stop - 1, 0), mask=rows < max_num_seqs)


@triton.jit(do_not_specialize=["max_model_len"])
def scatter_kernel(
    token_ids,  # [max_num_seqs]
    is_sampled,  # [max_num_seqs]
    num_sequences,  # [1]
    table_rows,  # [max_num_seqs]
    context_lens,  # [max_num_seqs]
    token_table,  # [num_tables, max_model_len]
    max_model_len,
    SEQUENCES: tl.constexpr,
):
    """Program: SEQUENCES of them."""
    sequences = tl.program_id(0) * SEQUENCES + tl.arange(0, SEQUENCES)
    is_sequence = sequences < tl.load(num_sequences)
    flag = tl.load(is_sampled + sequences, mask=is_sequence, other=0)
    token = tl.load(token_ids + sequences, mask=is_sequence, other=-1)
    position = tl.load(context_lens + sequences, mask=is_sequence, other=0)
    table = tl.load(table_rows + sequences, mask=is_sequence, other=0).to(tl.int64)
    # A full row has no place for one more: it would be the next row's first.
    is_written = (flag != 0) & (token >= 0) & (position < max_model_len)
    tl.store(token_table + table * max_model_len + position, token, mask=is_written)
