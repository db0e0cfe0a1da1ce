"""Ragged batches for attention: lengths, contents, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.attention.reference import ReferenceAttention
from chairlift.worker.batch import Batch, Segment
from chairlift.worker.cuda.attention import PagedStep, TritonAttention, paged_batch_of
from chairlift.worker.cuda.attention_variants import TILE, BatchLimits
from tests.worker.attention_shape import shape_of
from tests.worker.cuda.device import DEVICE

NUM_BLOCKS = 32
LIMITS = BatchLimits(max_num_seqs=6, max_num_batched_tokens=512, max_model_len=640)
SPLIT_TILES = 2  # few, so that short sequences have several splits
SPLIT = SPLIT_TILES * TILE  # tokens
NUM_PROGRAMS = 2  # that decode
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
