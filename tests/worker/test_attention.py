"""Every attention backend against the float64 reference, on random ragged batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.attention.backend import AttentionBackend, AttentionShape, HeadNorm
from chairlift.worker.attention.cpu import BLOCK_SIZE, TorchCpuAttention
from chairlift.worker.attention.native import NativeCpuAttention
from chairlift.worker.attention.reference import ReferenceAttention
from chairlift.worker.batch import Batch, Segment
from chairlift.worker.models.rope import Rope, RotaryTable
from tests.worker.attention_shape import shape_of

NUM_BLOCKS = 40
MakeBackend = Callable[[AttentionShape, int, torch.dtype], AttentionBackend[Any]]
BACKENDS: tuple[MakeBackend, ...] = (TorchCpuAttention, NativeCpuAttention)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """A batch and the shape of the model it belongs to."""

    shape: AttentionShape
    dtype: torch.dtype
    segments: tuple[Segment, ...]
    seed: int


def segments_of(lengths: list[tuple[int, int]], blocks: list[int]) -> tuple[Segment, ...]:
    """From (num_tokens, context_len) of each, with tables dealt from `blocks`."""
    segments, start, used = [], 0, 0
    for num_tokens, context_len in lengths:
        end = used - (-context_len // BLOCK_SIZE)
        segments.append(Segment(start, num_tokens, context_len, blocks[used:end]))
        start, used = start + num_tokens, end
    return tuple(segments)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_sequences = draw(st.integers(1, 5))
    lengths = []
    for _ in range(num_sequences):
        context_len = draw(st.integers(1, 5 * BLOCK_SIZE))
        num_tokens = draw(st.one_of(st.just(1), st.integers(1, context_len)))
        lengths.append((num_tokens, context_len))
    blocks = list(range(NUM_BLOCKS))
    if draw(st.booleans()):
        blocks = draw(st.permutations(blocks))
    shape = shape_of(
        num_kv_heads=draw(st.sampled_from((1, 2, 3))),
        group=draw(st.sampled_from((1, 2, 7, 9))),
        head_dim=draw(st.sampled_from((8, 16, 48, 64, 80))),
        window=draw(st.one_of(st.none(), st.integers(1, 4 * BLOCK_SIZE))),
    )
    dtype = draw(st.sampled_from(tuple(TOLERANCE)))
    return Case(shape, dtype, segments_of(lengths, blocks), draw(st.integers(0, 1000)))


def slots_of(segment: Segment, first: int) -> torch.Tensor:
    tokens = torch.arange(first, segment.context_len)
    return torch.tensor(segment.block_table)[tokens // BLOCK_SIZE] * BLOCK_SIZE + (
        tokens % BLOCK_SIZE
    )


def batch_of(segments: tuple[Segment, ...], slots: list[torch.Tensor]) -> Batch:
    slot_mapping = torch.cat(slots)
    unused = torch.zeros_like(slot_mapping)
    return Batch(unused, unused, slot_mapping, unused[:0], segments)


def attend_all(backend: AttentionBackend[Any], case: Case) -> list[torch.Tensor]:
    """Writes all keys and values, then attends; one result per layer."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = case.shape

    def random(num_tokens: int, num_heads: int) -> torch.Tensor:
        size = (num_tokens, num_heads, shape.head_dim)
        return torch.randn(size, generator=generator).to(case.dtype)

    everything = batch_of(case.segments, [slots_of(segment, 0) for segment in case.segments])
    first_query = [segment.context_len - segment.num_rows for segment in case.segments]
    queried = batch_of(case.segments, list(map(slots_of, case.segments, first_query)))
    results = []
    for layer in range(shape.num_layers):
        k = random(everything.num_rows, shape.num_kv_heads)
        v = random(everything.num_rows, shape.num_kv_heads)
        q = random(queried.num_rows, shape.num_heads)
        backend.write(layer, k, v, backend.prepare(everything))
        results.append(backend.attend(layer, q, backend.prepare(queried)))
    return results


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("make", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_attention_equals_the_reference(make: MakeBackend, case: Case) -> None:
    """Any mix of chunks and decodes, any window, group, head and block order."""
    expected = attend_all(ReferenceAttention(case.shape, NUM_BLOCKS), case)
    found = attend_all(make(case.shape, NUM_BLOCKS, case.dtype), case)
    for layer in range(case.shape.num_layers):
        difference = (found[layer].double() - expected[layer].double()).abs().max()
        assert difference < TOLERANCE[case.dtype]


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_run_of_blocks_and_scattered_blocks_give_the_same_bits(
    make: MakeBackend, dtype: torch.dtype
) -> None:
    """Reading a view of the pool and gathering blocks from it can't be told apart."""
    shape, lengths = shape_of(window=40), [(5, 70), (1, 33), (64, 64), (1, 100)]
    results = []
    for blocks in (list(range(NUM_BLOCKS)), list(range(NUM_BLOCKS))[::-1]):
        case = Case(shape, dtype, segments_of(lengths, blocks), seed=1)
        results.append(attend_all(make(shape, NUM_BLOCKS, dtype), case))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("make", BACKENDS)
def test_rows_of_padding_come_back_as_zero(make: MakeBackend) -> None:
    """A row that belongs to no segment neither fails nor shows what was in memory."""
    shape = shape_of()
    backend = make(shape, NUM_BLOCKS, torch.float32)
    segments = segments_of([(1, 1)], list(range(NUM_BLOCKS)))
    prepared = backend.prepare(batch_of(segments, [torch.tensor([0, backend.null_slot])]))
    k = torch.ones(2, shape.num_kv_heads, shape.head_dim)
    backend.write(0, k, k, prepared)
    out = backend.attend(0, torch.ones(2, shape.num_heads, shape.head_dim), prepared)
    assert torch.equal(out[0], torch.ones(shape.num_heads, shape.head_dim))
    assert not out[1].any()


@pytest.mark.parametrize("has_norm", [False, True])
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_projections_are_normed_rotated_and_written_as_the_slow_way_does(
    has_norm: bool, case: Case
) -> None:
    """The native kernel's one pass against the contract's own steps: the queries agree, and so does
    what attention makes of them and the cache."""
    shape, dtype = case.shape, case.dtype
    generator = torch.Generator().manual_seed(case.seed)
    whole = tuple(replace(segment, num_rows=segment.context_len) for segment in case.segments)
    starts = itertools.accumulate([0, *(segment.num_rows for segment in whole)])
    whole = tuple(replace(s, start=start) for s, start in zip(whole, starts, strict=False))
    batch = batch_of(whole, [slots_of(segment, 0) for segment in whole])
    positions = torch.cat([torch.arange(segment.context_len) for segment in whole])
    num_rotated = shape.num_heads + shape.num_kv_heads
    qkv = torch.randn(
        batch.num_rows, (num_rotated + shape.num_kv_heads) * shape.head_dim, generator=generator
    ).to(dtype)
    weight = torch.randn(num_rotated, shape.head_dim, generator=generator).to(dtype)
    norm = HeadNorm(weight, 1e-6) if has_norm else None
    rotation = RotaryTable(Rope(10_000.0), shape.head_dim, 5 * BLOCK_SIZE).at(positions)
    found = []
    backends: list[AttentionBackend[Any]] = [
        NativeCpuAttention(shape, NUM_BLOCKS, dtype),
        ReferenceAttention(shape, NUM_BLOCKS),
    ]
    for backend in backends:
        prepared = backend.prepare(batch)
        q = backend.write_rotated(1, qkv, norm, rotation, prepared)
        found.append((q.double(), backend.attend(1, q, prepared).double()))
    (q, attended), (expected_q, expected) = found
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(q, expected_q, atol=tolerance, rtol=tolerance)
    if dtype == torch.float32:  # rounded scores of normed heads may differ by more in bfloat16
        torch.testing.assert_close(attended, expected, atol=1e-4, rtol=1e-4)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Case, list[int]]:
    """One sequence, and where its prompt is cut."""
    case = draw(cases())
    segment = case.segments[0]
    places = draw(st.lists(st.integers(1, segment.context_len), max_size=6, unique=True))
    return case, sorted({*places, segment.context_len})


@settings(max_examples=150, deadline=None)
@given(cuts())
def test_the_native_kernel_gives_the_same_bits_however_a_sequence_is_cut(
    drawn: tuple[Case, list[int]],
) -> None:
    """Whole or in chunks of any lengths, single tokens among them, in any blocks."""
    case, ends = drawn
    segment = case.segments[0]
    length, table = segment.context_len, segment.block_table
    generator = torch.Generator().manual_seed(case.seed)
    heads = (case.shape.num_heads, case.shape.num_kv_heads, case.shape.num_kv_heads)
    q, k, v = (
        torch.randn(length, count, case.shape.head_dim, generator=generator).to(case.dtype)
        for count in heads
    )

    def attended(ends: list[int], table: list[int], layer: int) -> torch.Tensor:
        backend = NativeCpuAttention(case.shape, NUM_BLOCKS, case.dtype)
        parts = []
        for first, end in zip([0, *ends], ends, strict=False):
            part = Segment(0, end - first, end, table)
            prepared = backend.prepare(batch_of((part,), [slots_of(part, first)]))
            backend.write(layer, k[first:end], v[first:end], prepared)
            parts.append(backend.attend(layer, q[first:end], prepared))
        return torch.cat(parts)

    for layer in range(case.shape.num_layers):
        whole = attended([length], table, layer)
        assert torch.equal(whole, attended(ends, table[::-1], layer))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_later_token_that_is_no_number_does_not_reach_earlier_ones(
    poison: float, dtype: torch.dtype
) -> None:
    """Neither its key nor its value, though the kernel computes both rows in one tile."""
    shape, block = shape_of(num_kv_heads=1, group=1), [0]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 1, shape.head_dim, generator=generator).to(dtype) for _ in range(3))
    results = []
    for is_poisoned in (False, True):
        backend = NativeCpuAttention(shape, NUM_BLOCKS, dtype)
        if is_poisoned:
            k[2], v[2] = poison, poison
        segment = Segment(0, 3, 3, block)
        prepared = backend.prepare(batch_of((segment,), [slots_of(segment, 0)]))
        backend.write(0, k, v, prepared)
        results.append(backend.attend(0, q, prepared))
    assert torch.equal(results[0][:2], results[1][:2])
    assert not results[1][2].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 2, 40])
def test_a_key_that_is_no_number_is_not_passed_over(
    dtype: torch.dtype, poison: float, position: int
) -> None:
    """A query that sees it gets no numbers where the reference has none, and the same where it has
    some: minus infinity is a score like others. (torch's attention gives zeros for infinities.)"""
    shape = shape_of(num_kv_heads=1, group=1)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(70, 1, shape.head_dim, generator=generator).to(dtype) for _ in range(3))
    q = q.abs()  # so that a score is the infinity that the key has
    k[position, :, 3] = poison
    segment = Segment(0, 70, 70, [2, 0, 1])
    batch = batch_of((segment,), [slots_of(segment, 0)])

    def attended(backend: AttentionBackend[Any]) -> torch.Tensor:
        prepared = backend.prepare(batch)
        backend.write(0, k, v, prepared)
        return backend.attend(0, q, prepared).double()

    expected = attended(ReferenceAttention(shape, NUM_BLOCKS))
    found = attended(NativeCpuAttention(shape, NUM_BLOCKS, dtype))
    assert torch.equal(found.isfinite(), expected.isfinite())
    difference = (found - expected)[expected.isfinite()].abs()
    assert not len(difference) or difference.max() < TOLERANCE[dtype]
