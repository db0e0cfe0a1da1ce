"""Triton's paged attention against the float64 reference, and against itself in other company."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.attention.reference import ReferenceAttention
from chairlift.worker.cuda import attention, attention_variants
from chairlift.worker.cuda.attention import TritonAttention, paged_batch_of
from chairlift.worker.cuda.attention_variants import TILE
from chairlift.worker.cuda.paged_batch import PagedBatch
from tests.worker.attention_shape import shape_of
from tests.worker.cuda.attention_cases import (
    NUM_BLOCKS,
    SPLIT,
    TOLERANCE,
    Case,
    Content,
    Lengths,
    batch_of,
    cases,
    contents_of,
    on_cpu,
    poisoned,
    queries_of,
    slots_of,
    store,
)
from tests.worker.cuda.device import DEVICE

pytestmark = pytest.mark.usefixtures("small_splits")


def attended(
    backend: TritonAttention, layer: int, contents: list[Content], lengths: tuple[Lengths, ...]
) -> torch.Tensor:
    prepared = backend.prepare(batch_of(contents, lengths))
    return backend.attend(layer, queries_of(contents, lengths), prepared)


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


@pytest.mark.parametrize(
    ("window", "decode_rows", "dtype"),
    [(None, 1, torch.float32), (200, 1, torch.bfloat16), (None, 3, torch.float16)],
)
def test_who_joins_splits_does_not_change_a_bit(
    window: int | None, decode_rows: int, dtype: torch.dtype
) -> None:
    """The program that did them all, where many decode, or a kernel of its own, where one does."""
    lengths = tuple(Lengths(decode_rows, 150 + 97 * n) for n in range(4))
    case = Case(shape_of(num_kv_heads=3, group=4, window=window), dtype, lengths, decode_rows)
    contents, backend = contents_of(case), poisoned(case)
    store(backend, contents, 1)
    together = attended(backend, 1, contents, lengths).split(decode_rows)
    assert num_decode_items(backend) == len(lengths)
    for content, own, among in zip(contents, lengths, together, strict=True):
        alone = attended(backend, 1, [content], (own,))
        assert num_decode_items(backend) > 1
        assert torch.equal(alone, among)


def num_decode_items(backend: TritonAttention) -> int:
    """Of layer 1, in the batch that was prepared last."""
    return int(backend._work.of(backend.shape.sliding_windows[1]).counts[0])


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
