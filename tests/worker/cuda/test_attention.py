"""Triton's paged attention against the float64 reference, and against itself in other company."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.attention.reference import ReferenceAttention
from chairlift.worker.batch import Batch, Segment
from chairlift.worker.cuda import attention, attention_variants
from chairlift.worker.cuda.attention import PagedStep, TritonAttention, paged_batch_of
from chairlift.worker.cuda.attention_variants import TILE, BatchLimits
from chairlift.worker.cuda.paged_batch import PagedBatch
from tests.worker.cuda.device import DEVICE

NUM_BLOCKS = 32
LIMITS = BatchLimits(max_num_seqs=6, max_num_batched_tokens=512, max_model_len=640)
SPLIT_TILES = 2  # few, so that short sequences have several splits
SPLIT = SPLIT_TILES * TILE  # tokens
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Lengths:
    """Of a sequence in a batch."""

    num_rows: int
    context_len: int

    @property
    def first(self) -> int:
        """The position of its first row."""
        return self.context_len - self.num_rows

    @property
    def num_blocks(self) -> int:
        return -(-self.context_len // TILE)


@dataclass(frozen=True)
class Content:
    """Queries, keys and values of every token of a sequence, and its blocks."""

    q: torch.Tensor  # [context_len, num_heads, head_dim]
    k: torch.Tensor  # [context_len, num_kv_heads, head_dim]
    v: torch.Tensor
    blocks: list[int]


@dataclass(frozen=True)
class Case:
    """A batch and the shape of the model it belongs to."""

    shape: AttentionShape
    dtype: torch.dtype
    lengths: tuple[Lengths, ...]
    max_decode_rows: int = 1
    seed: int = 0
    layer: int = 0

    @property
    def limits(self) -> BatchLimits:
        return replace(LIMITS, max_decode_rows=self.max_decode_rows)


def shape_of(
    num_kv_heads: int = 2, group: int = 2, head_dim: int = 16, window: int | None = None
) -> AttentionShape:
    return AttentionShape(
        num_layers=2,
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        sliding_windows=(None, window),
    )


LENGTHS = st.one_of(
    st.builds(Lengths, st.just(1), st.integers(1, 3 * SPLIT)),
    st.builds(Lengths, st.just(1), st.sampled_from((1, 64, 65, SPLIT, SPLIT + 1, 2 * SPLIT))),
    st.tuples(st.integers(1, 70), st.integers(0, 150)).map(lambda x: Lengths(x[0], sum(x))),
    st.tuples(st.integers(1, 5), st.integers(0, 2 * SPLIT)).map(lambda x: Lengths(x[0], sum(x))),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = shape_of(
        num_kv_heads=draw(st.sampled_from((1, 2, 3))),
        group=draw(st.sampled_from((1, 2, 4, 5, 7, 20))),
        head_dim=draw(st.sampled_from((8, 16, 64, 96, 128, 256))),
        window=draw(st.one_of(st.none(), st.integers(1, 100), st.integers(1, 2 * SPLIT))),
    )
    lengths = draw(st.lists(LENGTHS, min_size=1, max_size=3))
    return Case(
        shape,
        draw(st.sampled_from(tuple(TOLERANCE))),
        tuple(lengths),
        max_decode_rows=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 999)),
        layer=draw(st.integers(0, 1)),
    )


def contents_of(case: Case) -> list[Content]:
    """Random, in shuffled blocks."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = case.shape
    blocks = iter(torch.randperm(NUM_BLOCKS, generator=generator).tolist())
    contents = []
    for lengths in case.lengths:
        q, k, v = (
            torch.randn(lengths.context_len, heads, shape.head_dim, generator=generator).to(
                DEVICE, case.dtype
            )
            for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        )
        contents.append(Content(q, k, v, [next(blocks) for _ in range(lengths.num_blocks)]))
    return contents


def slots_of(blocks: list[int], first: int, end: int) -> torch.Tensor:
    tokens = torch.arange(first, end)
    return torch.tensor(blocks)[tokens // TILE] * TILE + tokens % TILE


def batch_of(
    contents: list[Content], lengths: tuple[Lengths, ...], padding: int = 0, null_slot: int = 0
) -> Batch:
    segments, slots, start = [], [], 0
    for content, own in zip(contents, lengths, strict=True):
        segments.append(Segment(start, own.num_rows, own.context_len, content.blocks))
        slots.append(slots_of(content.blocks, own.first, own.context_len))
        start += own.num_rows
    slots.append(torch.full((padding,), null_slot))
    slot_mapping = torch.cat(slots).to(DEVICE)
    unused = torch.zeros_like(slot_mapping)
    return Batch(unused, unused, slot_mapping, unused[:0], tuple(segments))


def poisoned(case: Case, limits: BatchLimits | None = None) -> TritonAttention:
    """One whose unwritten slots hold no numbers."""
    backend = TritonAttention(case.shape, NUM_BLOCKS, case.dtype, limits or case.limits, DEVICE)
    backend.pool.fill_(torch.nan)
    backend._partials.fill_(torch.nan)
    backend._states.fill_(torch.nan)
    return backend


def store(
    backend: TritonAttention | ReferenceAttention, contents: list[Content], layer: int
) -> None:
    """All keys and values of all sequences, one sequence at a time."""
    for content in contents:
        unlimited = batch_of([content], (Lengths(len(content.k), len(content.k)),))
        if isinstance(backend, ReferenceAttention):
            backend.write(layer, content.k.cpu(), content.v.cpu(), on_cpu(unlimited))
        else:
            paged = paged_batch_of((), unlimited.slot_mapping, DEVICE)
            backend.write(layer, content.k, content.v, PagedStep(paged, paged.slots, False, False))


def on_cpu(batch: Batch) -> Batch:
    return replace(batch, slot_mapping=batch.slot_mapping.cpu())


def queries_of(contents: list[Content], lengths: tuple[Lengths, ...]) -> torch.Tensor:
    pairs = zip(contents, lengths, strict=True)
    return torch.cat([content.q[own.first : own.context_len] for content, own in pairs])


def attended(
    backend: TritonAttention, layer: int, contents: list[Content], lengths: tuple[Lengths, ...]
) -> torch.Tensor:
    prepared = backend.prepare(batch_of(contents, lengths))
    return backend.attend(layer, queries_of(contents, lengths), prepared)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Small splits; and tiny tensors, for which a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_variants, "SPLIT_TILES", SPLIT_TILES)
        yield
    torch.set_num_threads(num_threads)


@settings(max_examples=45, deadline=None)
@given(case=cases())
def test_attention_equals_the_reference(case: Case) -> None:
    """Any mix of chunks, decodes and drafts, any window, group, head and number."""
    contents = contents_of(case)
    found, expected = poisoned(case), ReferenceAttention(case.shape, NUM_BLOCKS, TILE)
    batch, q = batch_of(contents, case.lengths), queries_of(contents, case.lengths)
    store(found, contents, case.layer)
    store(expected, contents, case.layer)
    out = found.attend(case.layer, q, found.prepare(batch)).cpu()
    wanted, tolerance = expected.attend(case.layer, q.cpu(), on_cpu(batch)), TOLERANCE[case.dtype]
    torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)


@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_neighbours_do_not_change_a_bit(case: Case) -> None:
    """Every sequence alone, and among others, in the other order too."""
    contents, backend = contents_of(case), poisoned(case)
    counts = [x.num_rows for x in case.lengths]
    layer = case.layer
    store(backend, contents, layer)
    together = attended(backend, layer, contents, case.lengths).split(counts)
    turned = attended(backend, layer, contents[::-1], case.lengths[::-1]).split(counts[::-1])
    for index, content in enumerate(contents):
        alone = attended(backend, layer, [content], case.lengths[index : index + 1])
        assert torch.equal(alone, together[index])
        assert torch.equal(alone, turned[-1 - index])


@settings(max_examples=15, deadline=None)
@given(
    group=st.sampled_from((1, 4, 7)),
    window=st.one_of(st.none(), st.integers(1, 140)),
    dtype=st.sampled_from(tuple(TOLERANCE)),
    places=st.lists(st.integers(2, 138), max_size=4, unique=True),
)
def test_a_chunks_rows_have_the_same_bits_however_the_sequence_is_cut(
    group: int, window: int | None, dtype: torch.dtype, places: list[int]
) -> None:
    """As long as no piece is so short that it decodes."""
    ends = [140]
    for place in sorted(places, reverse=True):
        if ends[0] - place > 1:
            ends.insert(0, place)
    whole = (Lengths(140, 140),)
    case = Case(shape_of(1, group, 16, window), dtype, whole)
    contents, backend = contents_of(case), poisoned(case)
    store(backend, contents, 1)
    pieces = [
        attended(backend, 1, contents, (Lengths(end - first, end),))
        for first, end in itertools.pairwise([0, *ends])
    ]
    assert torch.equal(torch.cat(pieces), attended(backend, 1, contents, whole))


@pytest.mark.parametrize("context_len", [1, 64, SPLIT - 3, SPLIT + 1, 3 * SPLIT])
@pytest.mark.parametrize("group", [1, 4, 7])
def test_drafts_do_not_change_the_row_before_them(group: int, context_len: int) -> None:
    """Verified among drafts a token's row has the bits that it has alone."""
    num_rows = 16 // group
    lengths = (Lengths(num_rows, context_len + num_rows - 1),)
    case = Case(shape_of(group=group, head_dim=64), torch.bfloat16, lengths, num_rows)
    contents, backend = contents_of(case), poisoned(case)
    store(backend, contents, 0)
    with_drafts = attended(backend, 0, contents, lengths)
    alone = attended(backend, 0, contents, (Lengths(1, context_len),))
    assert torch.equal(alone[0], with_drafts[0])


@pytest.mark.parametrize("num_processors", [1, 5])
def test_the_number_of_programs_does_not_change_a_bit(
    num_processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program that does everything, and more programs than there is work."""
    lengths = (Lengths(1, 400), Lengths(70, 80), Lengths(1, 3))
    case = Case(shape_of(group=5, window=300), torch.float32, lengths)
    contents, results = contents_of(case), []
    for _ in range(2):
        backend = poisoned(case)
        store(backend, contents, 1)
        results.append(attended(backend, 1, contents, lengths))
        monkeypatch.setattr(attention, "_num_processors", lambda device: num_processors)
    assert torch.equal(*results)


@pytest.mark.parametrize("lengths", [(), (Lengths(1, 1),), (Lengths(3, 3), Lengths(1, 70))])
def test_rows_of_padding_come_back_as_zeros(lengths: tuple[Lengths, ...]) -> None:
    """They write to the null block, and nothing of it shows."""
    case = Case(shape_of(head_dim=24), torch.float32, lengths)
    contents, backend = contents_of(case), poisoned(case)
    store(backend, contents, 0)
    batch = batch_of(contents, lengths, padding=9, null_slot=backend.null_slot)
    prepared = backend.prepare(batch)
    before = backend.pool[:, :-1].clone()
    ones = torch.ones(batch.num_rows, case.shape.num_kv_heads, 24, device=DEVICE)
    past = sum(x.num_rows for x in lengths)
    if not lengths:
        backend.write(0, ones, ones, prepared)
        torch.testing.assert_close(backend.pool[:, :-1], before, equal_nan=True, rtol=0, atol=0)
    q = torch.ones(batch.num_rows, case.shape.num_heads, 24, device=DEVICE)
    out = backend.attend(0, q, prepared)
    assert out[:past].isfinite().all()
    assert not out[past:].any()


def test_keys_and_values_lie_where_other_kernels_look_for_them() -> None:
    """Slot by slot in [layers, blocks, keys or values, heads, 64, head_dim]."""
    case = Case(shape_of(num_kv_heads=3), torch.float32, (Lengths(100, 100),))
    (content,), backend = contents_of(case), poisoned(case)
    store(backend, [content], 1)
    assert backend.pool[0].isnan().all()
    for token, slot in enumerate(slots_of(content.blocks, 0, 100).tolist()):
        block, offset = divmod(slot, TILE)
        assert torch.equal(backend.layer_pool(1)[block, 0, :, offset], content.k[token])
        assert torch.equal(backend.layer_pool(1)[block, 1, :, offset], content.v[token])
    assert backend.pool[1].isfinite().sum() == 2 * content.k.numel()


def test_a_batch_with_room_for_more_gives_the_same_bits() -> None:
    """Fixed buffers whose rest holds rubbish, tables in other rows: as a graph will have it."""
    lengths = (Lengths(1, 500), Lengths(40, 100), Lengths(1, 64))
    case = Case(shape_of(group=7, window=300), torch.bfloat16, lengths)
    contents, backend = contents_of(case), poisoned(case)
    batch = batch_of(contents, lengths, padding=6, null_slot=backend.null_slot)
    q = torch.cat([queries_of(contents, lengths), contents[0].q[:6]])
    exact = paged_batch_of(batch.segments, batch.slot_mapping, DEVICE)

    def roomy(part: torch.Tensor) -> torch.Tensor:
        rubbish = torch.full((10 - len(part),), 2**30, dtype=torch.int32, device=DEVICE)
        return torch.cat([part, rubbish])

    tables = torch.full((9, 40), 2**30, dtype=torch.int32, device=DEVICE)
    tables[[5, 0, 8], : exact.block_tables.shape[1]] = exact.block_tables
    spacious = PagedBatch(
        exact.num_sequences,
        roomy(exact.query_starts),
        roomy(exact.context_lens),
        roomy(torch.tensor([5, 0, 8], dtype=torch.int32, device=DEVICE)),
        tables,
        exact.slots,
    )
    for layer in range(case.shape.num_layers):
        store(backend, contents, layer)
        expected = backend.attend(layer, q, backend.prepare(batch))
        assert torch.equal(
            backend.attend(layer, q, backend.prepare_paged(spacious, batch.positions.int())),
            expected,
        )


def test_queries_may_be_a_part_of_the_projections() -> None:
    """Rows with keys and values between them, as one product makes them."""
    lengths = (Lengths(1, 10), Lengths(5, 9))
    case = Case(shape_of(), torch.float32, lengths)
    contents, backend = contents_of(case), poisoned(case)
    store(backend, contents, 0)
    q = queries_of(contents, lengths)
    wide = torch.cat([q, torch.full_like(q, torch.nan)], dim=1)[:, : case.shape.num_heads]
    prepared = backend.prepare(batch_of(contents, lengths))
    assert not wide.is_contiguous()
    assert torch.equal(backend.attend(0, wide, prepared), backend.attend(0, q, prepared))


def work_of(
    lengths: tuple[Lengths, ...], window: int, decode_rows: int, chunk_rows: int
) -> tuple[list[list[int]], ...]:
    """What the plan should list: items of decode, chunks and merges."""
    decode, chunks, merges = [], [], []
    start = partial = 0
    for index, x in enumerate(lengths):
        first, end = max(0, x.first + 1 - window) // TILE, x.num_blocks
        splits = range(first - first % SPLIT_TILES, end, SPLIT_TILES)
        if x.num_rows > decode_rows:
            for i in reversed(range(0, x.num_rows, chunk_rows)):
                chunks.append([start + i, min(chunk_rows, x.num_rows - i), x.first + i, index])
        else:
            for i, split in enumerate(splits):
                tiles = [max(first, split), min(end, split + SPLIT_TILES)]
                places = [partial + i, len(splits)]
                decode.append([start, x.num_rows, x.first, index, *tiles, *places])
        if x.num_rows <= decode_rows and len(splits) > 1:
            for row in range(x.num_rows):
                merges.append([start + row, partial + row * len(splits), len(splits)])
            partial += x.num_rows * len(splits)
        start += x.num_rows
    return decode, chunks, merges


@settings(max_examples=40, deadline=None)
@given(case=cases(), window=st.integers(1, 2 * SPLIT))
def test_the_plan_lists_each_piece_of_work_once(case: Case, window: int) -> None:
    """In the order of the sequences, against a plain loop over them."""
    shape = shape_of(1, case.shape.num_heads // case.shape.num_kv_heads, 8, window)
    case = replace(case, shape=shape)
    backend = poisoned(case)
    backend.prepare(batch_of(contents_of(case), case.lengths))
    chunk_rows = int(backend.variants.plan.constants["CHUNK_ROWS"])
    for reach, size in ((None, 2**30), (window, window)):
        work = backend._work.of(reach)
        num_decode, num_chunk, num_merge, num_rows = work.counts.tolist()
        found = (
            work.decode_items[:num_decode].tolist(),
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
        ends = items[: num_items // 2, 4:6].tolist()
        assert num_items == 2 * len(ends) <= 2 * 16
        assert ends[0][0] == 0 and ends[-1][1] == len(table)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 2, 70])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, when interpreted
def test_a_key_that_is_no_number_is_not_passed_over(poison: float, position: int) -> None:
    """A query that sees it gets no numbers where the reference has none, and the same where it has
    some: minus infinity is a score like others."""
    lengths = (Lengths(90, 90), Lengths(1, 90))
    case = Case(shape_of(1, 1), torch.float32, lengths)
    contents = contents_of(case)
    for content in contents:
        content.q.abs_()  # so that a score is the infinity that the key has
        content.k[position, :, 3] = poison
    found, expected = poisoned(case), ReferenceAttention(case.shape, NUM_BLOCKS, TILE)
    store(found, contents, 0)
    store(expected, contents, 0)
    out = attended(found, 0, contents, lengths).cpu()
    batch, q = on_cpu(batch_of(contents, lengths)), queries_of(contents, lengths).cpu()
    wanted = expected.attend(0, q, batch)
    assert torch.equal(out.isfinite(), wanted.isfinite())
    difference = (out - wanted)[wanted.isfinite()].abs()
    assert not len(difference) or difference.max() < 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_variants_signature_and_constants_are_its_kernels_arguments(dtype: torch.dtype) -> None:
    """In their order, each once: what is compiled ahead of time is what is launched."""
    variants = list(attention_variants.attention_variants(shape_of(window=5), dtype))
    assert len({variant.name for variant in variants}) == len(variants) == 5
    for variant in variants:
        names = [*variant.signature, *variant.constants]
        assert names == list(variant.kernel.arg_names)
