"""The inputs of a step, made on the device from what it knows of every request: the host sends a
few numbers a sequence and never waits for the tokens of the step before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .input_kernels import SIZES, expand_kernel, put_kernel, scatter_kernel
from .paged_batch import PagedBatch
from .variant import Variant

ROWS = 64  # of one program, a thread each


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
        grid = (-(-max(num_rows, step.max_num_seqs) // ROWS),)
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
        grid = (-(-len(token_ids) // ROWS),)
        sequences = (batch.num_sequences, batch.table_rows, batch.context_lens)
        variant[grid](token_ids, is_sampled, *sequences, tokens, tokens.shape[1])


def put(table: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Numbers into a contiguous table, at flat places; all int32. How many is known to the host."""
    if len(places):
        put_variant()[(-(-len(places) // ROWS),)](table, places, values, len(places))


def input_variants(block_size: int, max_num_seqs: int) -> Iterator[Variant]:
    """All of these kernels."""
    yield expand_variant(block_size, max_num_seqs)
    yield scatter_variant()
    yield put_variant()


@cache
def expand_variant(block_size: int, max_num_seqs: int) -> Variant:
    """For any number of rows and any sizes of the tables."""
    steps = (max_num_seqs - 1).bit_length()
    constants = {"BLOCK_SIZE": block_size, "STEPS": steps, "ROWS": ROWS}
    return _variant(f"expand[{max_num_seqs}]", expand_kernel, constants, SIZES)


@cache
def scatter_variant() -> Variant:
    """For any number of sequences."""
    return _variant("scatter", scatter_kernel, {"SEQUENCES": ROWS}, ["max_model_len"])


@cache
def put_variant() -> Variant:
    """For any number of numbers."""
    return _variant("put", put_kernel, {"NUMBERS": ROWS}, ["count"])


def _variant(name: str, kernel: Any, constants: dict[str, int], sizes: Collection[str]) -> Variant:
    """Whose arguments are tensors of int32, but for constants and sizes."""
    names = [argument for argument in kernel.arg_names if argument not in constants]
    signature = {each: "i32" if each in sizes else "*i32" for each in names}
    return Variant(name, kernel, signature, constants, num_warps=ROWS // 32)
