"""A step's inputs made on the device, against the same said in plain Python."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch

from chairlift.worker.cuda.inputs import (
    InputPreparation,
    ModelInputs,
    RequestTables,
    StepArrays,
    input_variants,
)
from tests.worker.cuda.device import DEVICE

BLOCK_SIZE = 64
NULL_SLOT = 1000 * BLOCK_SIZE
GARBAGE = 2**30  # what stands where nothing is said


@dataclass(frozen=True)
class Sequence:
    """A request's share of a step."""

    num_rows: int
    first_position: int
    table_row: int


@dataclass(frozen=True)
class Case:
    """A step of some sequences, in a batch of so many rows at most."""

    sequences: tuple[Sequence, ...]
    max_num_seqs: int
    num_rows: int
    max_model_len: int
    seed: int

    def __str__(self) -> str:
        return f"{len(self.sequences)}of{self.max_num_seqs}-{self.num_rows}-{self.seed}"


def case_of(seed: int) -> Case:
    draw = random.Random(seed)
    max_num_seqs = draw.choice((1, 2, 7, 64, 100))
    max_model_len = draw.choice((1, 64, 200, 333))
    rows = draw.sample(range(max_num_seqs + 3), draw.randint(0, max_num_seqs))
    sequences = []
    for row in rows:
        context_len = draw.randint(1, max_model_len)
        num_rows = draw.choice((1, 1, 1, 0, draw.randint(1, min(20, context_len))))
        sequences.append(Sequence(num_rows, context_len - num_rows, row))
    num_real_rows = sum(sequence.num_rows for sequence in sequences)
    num_rows = max(1, num_real_rows + draw.choice((0, 0, 1, 70)))
    return Case(tuple(sequences), max_num_seqs, num_rows, max_model_len, seed)


CASES = [case_of(seed) for seed in range(60)]


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def tables_of(case: Case) -> RequestTables:
    """Random tokens and blocks, in a few rows more than there are sequences."""
    generator = torch.Generator().manual_seed(case.seed)
    num_tables, max_blocks = case.max_num_seqs + 3, -(-case.max_model_len // BLOCK_SIZE)
    tokens = torch.randint(50_000, (num_tables, case.max_model_len), generator=generator)
    blocks = torch.randint(1000, (num_tables, max_blocks), generator=generator)
    return RequestTables(tokens.int().to(DEVICE), blocks.int().to(DEVICE))


def step_of(case: Case) -> StepArrays:
    unsaid = [GARBAGE] * (case.max_num_seqs - len(case.sequences))
    starts = accumulate((sequence.num_rows for sequence in case.sequences), initial=0)
    return StepArrays(
        int32(len(case.sequences)),
        int32(*starts, *unsaid),
        int32(*(sequence.first_position for sequence in case.sequences), *unsaid),
        int32(*(sequence.table_row for sequence in case.sequences), *unsaid),
    )


def expand(case: Case, tables: RequestTables) -> ModelInputs:
    preparation = InputPreparation(tables, BLOCK_SIZE, NULL_SLOT)
    return preparation.expand(step_of(case), case.num_rows)


def expected_rows(case: Case, tables: RequestTables) -> list[tuple[int, int, int]]:
    """Input id, position and slot of every row."""
    tokens, blocks = tables.token_table.tolist(), tables.block_tables.tolist()
    rows = []
    for sequence in case.sequences:
        table = sequence.table_row
        for offset in range(sequence.num_rows):
            position = sequence.first_position + offset
            block, inside = divmod(position, BLOCK_SIZE)
            slot = blocks[table][block] * BLOCK_SIZE + inside
            rows.append((tokens[table][position], position, slot))
    return rows + [(0, 0, NULL_SLOT)] * (case.num_rows - len(rows))


@pytest.mark.parametrize("case", CASES, ids=Case.__str__)
def test_every_row_finds_its_sequence(case: Case) -> None:
    """Whatever the lengths, none included; rows beyond are padding, whatever the arrays hold."""
    tables = tables_of(case)
    inputs = expand(case, tables)
    columns = (inputs.input_ids, inputs.positions, inputs.batch.slots)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert found == expected_rows(case, tables)
    context_lens = [sequence.first_position + sequence.num_rows for sequence in case.sequences]
    padding = [0] * (case.max_num_seqs - len(context_lens))
    assert inputs.batch.context_lens.tolist() == context_lens + padding
    ends = accumulate(sequence.num_rows for sequence in case.sequences)
    assert inputs.last_rows.tolist() == [max(end - 1, 0) for end in ends] + padding
    assert all(column.dtype == torch.int32 for column in columns)


@pytest.mark.parametrize("case", CASES, ids=Case.__str__)
def test_sampled_tokens_are_appended_to_their_sequences(case: Case) -> None:
    """Those flagged, that are tokens and have room; the tables change nowhere else."""
    draw, tables = random.Random(case.seed), tables_of(case)
    flags = [draw.choice((0, 1, 7)) for _ in range(case.max_num_seqs)]
    token_ids = [draw.choice((-1, 0, 49_999)) for _ in range(case.max_num_seqs)]
    batch = expand(case, tables).batch
    expected = tables.token_table.tolist()
    for sequence, flag, token in zip(case.sequences, flags, token_ids, strict=False):
        context_len = sequence.first_position + sequence.num_rows
        if flag and token >= 0 and context_len < case.max_model_len:
            expected[sequence.table_row][context_len] = token
    preparation = InputPreparation(tables, BLOCK_SIZE, NULL_SLOT)
    preparation.scatter(int32(*token_ids), int32(*flags), batch)
    assert tables.token_table.tolist() == expected


def test_a_step_reads_what_the_step_before_sampled() -> None:
    """Without the host: the token that was scattered is the next row's input."""
    case = Case((Sequence(3, 0, 1), Sequence(1, 9, 0)), 4, 8, 20, seed=0)
    tables = tables_of(case)
    preparation = InputPreparation(tables, BLOCK_SIZE, NULL_SLOT)
    batch = expand(case, tables).batch
    preparation.scatter(int32(71, 72, 73, 74), int32(1, 1, 1, 1), batch)
    following = replace(case, sequences=(Sequence(1, 10, 0), Sequence(1, 3, 1)))
    inputs = expand(following, tables)
    assert inputs.input_ids.tolist() == [72, 71, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 255, 256, 257])
def test_the_search_has_steps_enough(max_num_seqs: int) -> None:
    """As many halvings as leave one sequence of all."""
    expand_variant, *_ = input_variants(BLOCK_SIZE, max_num_seqs)
    assert 2 ** expand_variant.constants["STEPS"] >= max_num_seqs
