"""What a step's attention has to do, as the plan lists it, against a plain loop."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.batch import Batch, Segment
from chairlift.worker.cuda import attention_variants
from chairlift.worker.cuda.attention_variants import TILE, BatchLimits
from tests.worker.attention_shape import shape_of
from tests.worker.cuda.attention_cases import (
    NUM_PROGRAMS,
    SPLIT,
    SPLIT_TILES,
    Case,
    Lengths,
    batch_of,
    cases,
    contents_of,
    poisoned,
)
from tests.worker.cuda.device import DEVICE

pytestmark = pytest.mark.usefixtures("small_splits")


def split_tiles(num_tiles: int) -> int:
    """Of a sequence whose first row sees so many; none is so long that it has the most splits."""
    if num_tiles <= SPLIT_TILES:
        return SPLIT_TILES
    return min(max(num_tiles // (2 * SPLIT_TILES), SPLIT_TILES // 2), SPLIT_TILES)


def tiles_of(x: Lengths, window: int) -> range:
    """That any row sees."""
    return range(max(0, x.first + 1 - window) // TILE, x.num_blocks)


def work_of(
    lengths: tuple[Lengths, ...], window: int, decode_rows: int, chunk_rows: int
) -> tuple[list[list[int]], ...]:
    """What the plan should list for a model with one head of keys: items of decode, chunks and
    merges."""
    decode, last, chunks, merges = [], [], [], []
    num_tiles = sum(len(tiles_of(x, window)) for x in lengths if x.num_rows <= decode_rows)
    start = partial = 0
    for index, x in enumerate(lengths):
        first, end = tiles_of(x, window).start, x.num_blocks
        size = split_tiles(x.first // TILE + 1 - first)
        splits = [(i, i + size) for i in range(first - first % size, end, size)]
        if end - first <= num_tiles / NUM_PROGRAMS / 3:
            splits = [(first, end)]
        if x.num_rows > decode_rows:
            for i in reversed(range(0, x.num_rows, chunk_rows)):
                chunks.append([start + i, min(chunk_rows, x.num_rows - i), x.first + i, index])
        else:
            for i, split in enumerate(splits):
                tiles = [max(first, split[0]), min(end, split[1])]
                places = [partial + i, len(splits)]
                items = last if i == len(splits) - 1 else decode
                items.append([start, x.num_rows, x.first, index, *tiles, *places, size])
        if x.num_rows <= decode_rows and len(splits) > 1:
            for row in range(x.num_rows):
                merges.append([start + row, partial + row * len(splits), len(splits)])
            partial += x.num_rows * len(splits)
        start += x.num_rows
    return decode + last, chunks, merges


@settings(max_examples=40, deadline=None)
@given(case=cases(), window=st.integers(1, 2 * SPLIT))
def test_the_plan_lists_each_piece_of_work_once(case: Case, window: int) -> None:
    """In the order of the sequences, the last splits of which follow all others; against a plain
    loop over them."""
    shape = shape_of(1, case.shape.num_heads // case.shape.num_kv_heads, 8, window)
    case = replace(case, shape=shape)
    backend = poisoned(case)
    backend.prepare(batch_of(contents_of(case), case.lengths))
    chunk_rows = int(backend.variants.plan.constants["CHUNK_ROWS"])
    for reach, size in ((None, 2**30), (window, window)):
        work = backend._work.of(reach)
        num_decode, num_chunk, num_merge, num_rows = work.counts[:4].tolist()
        found = (
            work.decode_items[:num_decode, :9].tolist(),
            work.chunk_items[:num_chunk].tolist(),
            work.merge_items[:num_merge, :3].tolist(),
        )
        assert found == work_of(case.lengths, size, backend.variants.decode_rows, chunk_rows)
        assert num_rows == sum(x.num_rows for x in case.lengths)


def test_a_long_sequence_has_no_more_splits_than_their_buffer() -> None:
    """Their size grows instead, with nothing but the sequence's length."""
    limits = BatchLimits(max_num_seqs=2, max_num_batched_tokens=4, max_model_len=100_000)
    case = Case(shape_of(num_kv_heads=16), torch.bfloat16, ())
    backend = poisoned(case, limits)
    assert backend.variants.max_splits == 16
    for context_len in (1921, 1920, 50_001, 100_000):
        table = [0] * -(-context_len // TILE)
        segment = Segment(0, 1, context_len, table)
        unused = torch.zeros(2, dtype=torch.int64, device=DEVICE)
        both = (segment, replace(segment, start=1))
        backend.prepare(Batch(unused, unused, unused, unused[:0], both))
        items = backend._work.of(None).decode_items
        num_items = int(backend._work.of(None).counts[0])
        # Of the first sequence: all splits but its last, which is the last but one of all.
        ends = [*items[: num_items // 2 - 1, 4:6].tolist(), items[num_items - 2, 4:6].tolist()]
        assert num_items == 2 * len(ends) <= 2 * 16
        assert ends[0][0] == 0 and ends[-1][1] == len(table)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize("window", [None, 6 * TILE])
def test_drafts_do_not_move_the_splits_of_a_long_sequence(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that would have too many, where drafts begin another tile."""
    monkeypatch.setattr(attention_variants, "NUM_SPLIT_ITEMS", 4)
    shape = shape_of(1, 1, 8, window)
    for first in (6 * TILE - 1, 9 * TILE - 1):
        sizes = []
        for num_rows in (1, 4):
            lengths = (Lengths(num_rows, first + num_rows),)
            case = Case(shape, torch.float32, lengths, max_decode_rows=4)
            backend = poisoned(case)
            backend.prepare(batch_of(contents_of(case), lengths))
            work = backend._work.of(window)
            assert 1 < work.counts[0] <= backend.variants.max_splits == 4
            sizes.append(work.decode_items[0, 8])
        assert sizes[0] == sizes[1]
