"""How often each token came in a sequence, for its penalties."""

import triton
import triton.language as tl

from .sampling_columns import IN_PROMPT, NUM_INTEGERS, NUM_OUTPUT_TOKENS


@triton.jit(do_not_specialize=["table_row"])
def clear_counts_kernel(counts, table_row, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """Of one row of [num_tables, VOCAB], a tile per program."""
    offsets = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = counts + table_row.to(tl.int64) * VOCAB
    tl.store(row + offsets, tl.zeros([TILE], tl.int32), mask=offsets < VOCAB)


@triton.jit(do_not_specialize=["table_row", "num_prompt_tokens", "num_tokens"])
def count_sequence_kernel(
    counts, table_row, token_ids, num_prompt_tokens, num_tokens, VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Adds a sequence's tokens to a cleared row; integers, whose order makes no difference."""
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tokens = tl.load(token_ids + index, mask=index < num_tokens, other=0)
    is_inside = (index < num_tokens) & (tokens >= 0) & (tokens < VOCAB)
    places = counts + table_row.to(tl.int64) * VOCAB + tokens
    is_prompt = index < num_prompt_tokens
    mark = tl.full([TILE], IN_PROMPT, tl.int32)
    tl.atomic_or(places, mark, mask=is_inside & is_prompt)
    tl.atomic_add(places, tl.full([TILE], 1, tl.int32), mask=is_inside & (is_prompt == 0))


@triton.jit
def advance_kernel(
    counts,  # [num_tables, VOCAB]
    integers,  # [num_tables, NUM_INTEGERS]
    num_valid,  # [1]
    table_rows,  # [num_rows]
    token_ids,  # [num_rows]
    is_number,  # [num_rows]
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    """What was chosen becomes output, where something was chosen."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_valid = rows < tl.load(num_valid)
    tokens = tl.load(token_ids + rows, mask=is_valid, other=0)
    tables = tl.load(table_rows + rows, mask=is_valid, other=0).to(tl.int64)
    is_chosen = is_valid & (tl.load(is_number + rows, mask=is_valid, other=0) != 0)
    one = tl.full([TILE], 1, tl.int32)
    tl.atomic_add(counts + tables * VOCAB + tokens, one, mask=is_chosen)
    tl.atomic_add(integers + tables * NUM_INTEGERS + NUM_OUTPUT_TOKENS, one, mask=is_chosen)
