"""The inputs of a step, made on the device from what it knows of every request: the host sends a
few numbers a sequence and never waits for the tokens of the step before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from .input_kernels import expand_kernel, put_kernel, scatter_kernel
from .paged_batch import PagedBatch
from .variant import Variant

ROWS = 64  # of one program, a thread each
INT32 = "*i32"


@dataclass(frozen=True, slots=True)
class RequestTables:
    """What the device knows of all requests, int32; a request keeps its row for life."""

    token_table: torch.Tensor  # [num_tables, max_model_len]
    block_tables: torch.Tensor  # [num_tables, max_blocks]


@dataclass(frozen=True, slots=True)
class StepArrays:
    """What the host says of a step, int32 and on the device.

    Sequence s computes the tokens from `first_positions[s]` on, in the batch's rows
    `query_starts[s]` to `query_starts[s + 1]`; `query_starts` ascends from 0.
    """

    num_sequences: torch.Tensor  # [1]; sequences beyond are padding, whatever stands there
    query_starts: torch.Tensor  # [max_num_seqs + 1]
    first_positions: torch.Tensor  # [max_num_seqs], tokens that earlier steps have computed
    table_rows: torch.Tensor  # [max_num_seqs]

    @property
    def max_num_seqs(self) -> int:
        return len(self.table_rows)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """A step's flat rows, int32; padding has token 0 at position 0."""

    input_ids: torch.Tensor  # [num_rows]
    positions: torch.Tensor  # [num_rows]
    last_rows: torch.Tensor  # [max_num_seqs], of each sequence; 0 where there is none
    batch: PagedBatch


class InputPreparation:
    """Reads and writes the tables by one launch each, of a grid that depends on no length."""

    def __init__(self, tables: RequestTables, block_size: int, null_slot: int) -> None:
        assert tables.token_table.is_contiguous() and tables.block_tables.is_contiguous()
        self._tables = tables
        self._block_size = block_size
        self._null_slot = null_slot

    def expand(self, step: StepArrays, num_rows: int) -> ModelInputs:
        """The step's rows, padded to `num_rows`, which must be enough."""
        tokens, blocks = self._tables.token_table, self._tables.block_tables
        input_ids, positions, slots = (tokens.new_empty(num_rows) for _ in range(3))
        context_lens, last_rows = (tokens.new_empty(step.max_num_seqs) for _ in range(2))
        starts = step.query_starts
        variant = expand_variant(self._block_size, step.max_num_seqs)
        grid = (_ceil_div(max(num_rows, step.max_num_seqs), ROWS),)
        said = (step.num_sequences, starts, step.first_positions, step.table_rows)
        made = (input_ids, positions, slots, context_lens, last_rows)
        sizes = (num_rows, step.max_num_seqs, tokens.shape[1], blocks.shape[1])
        variant[grid](*said, tokens, blocks, *made, *sizes, self._null_slot)
        batch = PagedBatch(step.num_sequences, starts, context_lens, step.table_rows, blocks, slots)
        return ModelInputs(input_ids, positions, last_rows, batch)

    def scatter(self, token_ids: torch.Tensor, is_sampled: torch.Tensor, batch: PagedBatch) -> None:
        """Appends a token to each sequence of the batch that `is_sampled` flags with a number
        other than 0; both are int32 [max_num_seqs].

        Not appended: a token below 0, which is none, and one after the max_model_len-th.
        """
        tokens = self._tables.token_table
        variant = scatter_variant()
        grid = (_ceil_div(len(token_ids), ROWS),)
        sequences = (batch.num_sequences, batch.table_rows, batch.context_lens)
        variant[grid](token_ids, is_sampled, *sequences, tokens, tokens.shape[1])


def put(table: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Numbers into a contiguous table, at flat places; all int32. How many is known to the host."""
    if len(places):
        put_variant()[(_ceil_div(len(places), ROWS),)](table, places, values, len(places))


def input_variants(block_size: int, max_num_seqs: int) -> Iterator[Variant]:
    """All of these kernels."""
    yield expand_variant(block_size, max_num_seqs)
    yield scatter_variant()
    yield put_variant()


@cache
def expand_variant(block_size: int, max_num_seqs: int) -> Variant:
    """For any number of rows and any sizes of the tables."""
    said = ("num_sequences", "query_starts", "first_positions", "table_rows")
    tables = ("token_table", "block_tables")
    made = ("input_ids", "positions", "slots", "context_lens", "last_rows")
    sizes = ("num_rows", "max_num_seqs", "max_model_len", "max_blocks", "null_slot")
    signature: dict[str, str] = dict.fromkeys((*said, *tables, *made), INT32)
    steps = (max_num_seqs - 1).bit_length()
    return Variant(
        name=f"expand[{max_num_seqs}]",
        kernel=expand_kernel,
        signature={**signature, **dict.fromkeys(sizes, "i32")},
        constants={"BLOCK_SIZE": block_size, "STEPS": steps, "ROWS": ROWS},
        num_warps=ROWS // 32,
    )


@cache
def scatter_variant() -> Variant:
    """For any number of sequences."""
    tensors = ("token_ids", "is_sampled", "num_sequences", "table_rows", "context_lens")
    signature: dict[str, str] = dict.fromkeys((*tensors, "token_table"), INT32)
    return Variant(
        name="scatter",
        kernel=scatter_kernel,
        signature={**signature, "max_model_len": "i32"},
        constants={"SEQUENCES": ROWS},
        num_warps=ROWS // 32,
    )


@cache
def put_variant() -> Variant:
    """For any number of numbers."""
    signature = {"table": INT32, "places": INT32, "values": INT32, "count": "i32"}
    constants = {"NUMBERS": ROWS}
    return Variant("put", put_kernel, signature, constants, num_warps=ROWS // 32)


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)
