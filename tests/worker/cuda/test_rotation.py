"""From a layer's projection to rotated queries and a paged pool, against float64."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from chairlift.worker.attention.backend import AttentionShape, HeadNorm
from chairlift.worker.cuda.rotation import RotateAndWrite, rotation_variants
from chairlift.worker.models.rope import Rope, RotaryTable, Rotation
from tests.worker.cuda.device import DEVICE

BLOCK_SIZE = 64
NUM_BLOCKS = 3
NULL_SLOT = NUM_BLOCKS * BLOCK_SIZE
MAX_MODEL_LEN = 300
EPS = 1e-6
HEADS = ((1, 1), (2, 1), (9, 3), (14, 2), (4, 4), (16, 8), (40, 8))  # queries, keys
HEAD_DIMS = (64, 96, 128, 256)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half an ulp
TABLES = {head_dim: RotaryTable(Rope(10_000.0), head_dim, MAX_MODEL_LEN) for head_dim in HEAD_DIMS}
for table in TABLES.values():
    table.cos, table.sin = table.cos.to(DEVICE), table.sin.to(DEVICE)


@dataclass(frozen=True)
class Case:
    """A batch; its rows hold the projections of so many tokens, some of them padding."""

    shape: AttentionShape
    dtype: torch.dtype
    num_rows: int
    num_padding: int
    has_norm: bool
    seed: int

    def __str__(self) -> str:
        shape, norm = self.shape, "norm" if self.has_norm else "plain"
        heads = f"{shape.num_heads}/{shape.num_kv_heads}x{shape.head_dim}"
        return f"{self.num_rows}+{self.num_padding}-{heads}-{self.dtype}-{norm}-{self.seed}"


@dataclass(frozen=True)
class Inputs:
    """What the kernel reads, and the pool that it writes to."""

    qkv: torch.Tensor
    norm: HeadNorm | None
    positions: torch.Tensor
    slots: torch.Tensor
    pool: torch.Tensor


def case_of(seed: int) -> Case:
    draw = random.Random(seed)
    num_heads, num_kv_heads = HEADS[seed % len(HEADS)]
    head_dim = HEAD_DIMS[seed % len(HEAD_DIMS)]
    return Case(
        AttentionShape(1, num_heads, num_kv_heads, head_dim, 1.0, (None,)),
        dtype=draw.choice(tuple(TOLERANCE)),
        num_rows=draw.choice((0, 1, 1, 2, 3, 5)),
        num_padding=draw.choice((0, 0, 3)),
        has_norm=draw.random() < 0.5,
        seed=seed,
    )


def inputs_of(case: Case) -> Inputs:
    """The pool is poisoned: what is not written stays NaN."""
    shape, generator = case.shape, torch.Generator().manual_seed(case.seed)
    num_rows, num_rotated = case.num_rows + case.num_padding, shape.num_heads + shape.num_kv_heads

    def normals(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(case.dtype).to(DEVICE)

    qkv = normals(num_rows, (num_rotated + shape.num_kv_heads) * shape.head_dim)
    norm = HeadNorm(normals(num_rotated, shape.head_dim), EPS) if case.has_norm else None
    positions = torch.randint(MAX_MODEL_LEN, (num_rows,), generator=generator)
    slots = torch.randperm(NULL_SLOT, generator=generator)[:num_rows]
    positions[case.num_rows :], slots[case.num_rows :] = 0, NULL_SLOT
    size = (NUM_BLOCKS + 1, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    pool = torch.full(size, torch.nan, dtype=case.dtype, device=DEVICE)
    return Inputs(qkv, norm, positions.int().to(DEVICE), slots.int().to(DEVICE), pool)


def run(case: Case, inputs: Inputs) -> torch.Tensor:
    rotation = Rotation(TABLES[case.shape.head_dim], inputs.positions)
    rotate_and_write = RotateAndWrite(case.shape, BLOCK_SIZE, case.dtype)
    return rotate_and_write(inputs.qkv, inputs.norm, rotation, inputs.slots, inputs.pool)


def heads_of(case: Case, inputs: Inputs) -> torch.Tensor:
    """Of the projection: [num_rows, num_heads + 2 * num_kv_heads, head_dim]."""
    num_heads = case.shape.num_heads + 2 * case.shape.num_kv_heads
    return inputs.qkv.view(len(inputs.qkv), num_heads, case.shape.head_dim)


def rotated(case: Case, inputs: Inputs) -> torch.Tensor:
    """Queries and keys by their definition, in float64: [num_rows, heads, head_dim]."""
    shape, table = case.shape, TABLES[case.shape.head_dim]
    x = heads_of(case, inputs)[:, : -shape.num_kv_heads].double()
    if inputs.norm is not None:
        factor = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        x = x * factor * inputs.norm.weight.double()
    cos = table.cos[inputs.positions.long()].double().unsqueeze(1)
    sin = table.sin[inputs.positions.long()].double().unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def gathered(pool: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at slots, one at a time: [num_slots, num_kv_heads, head_dim] each."""
    places = [divmod(slot, BLOCK_SIZE) for slot in slots.tolist()]
    rows = [pool[block, :, :, offset] for block, offset in places]
    keys_and_values = torch.stack(rows) if rows else pool.new_empty(0, *pool[0, :, :, 0].shape)
    return keys_and_values[:, 0], keys_and_values[:, 1]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """One rounding, and where the two products of a rotation cancel out what float32 loses."""
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * tolerance, atol=4e-6)


@pytest.mark.parametrize("case", [case_of(seed) for seed in range(56)], ids=Case.__str__)
def test_queries_keys_and_values_go_where_attention_reads_them(case: Case) -> None:
    """Queries and keys are rotated and rounded once, values are copied, nothing else is written."""
    inputs, num_heads = inputs_of(case), case.shape.num_heads
    queries = run(case, inputs)
    expected = rotated(case, inputs)
    assert queries.shape == expected[:, :num_heads].shape
    assert queries.dtype == case.dtype
    assert_close(queries, expected[:, :num_heads])
    slots = inputs.slots[: case.num_rows]
    keys, values = gathered(inputs.pool, slots)
    assert_close(keys, expected[: case.num_rows, num_heads:])
    heads = heads_of(case, inputs)[: case.num_rows]
    assert torch.equal(values, heads[:, -case.shape.num_kv_heads :])
    by_slot = inputs.pool[:NUM_BLOCKS].permute(0, 3, 1, 2, 4).flatten(0, 1)
    by_slot[slots.long()] = torch.nan
    assert by_slot.isnan().all()


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_no_further_from_the_definition_than_the_twins(
    dtype: torch.dtype, has_norm: bool
) -> None:
    """HeadNorm in torch rounds twice before the rotation does: its errors are larger by half."""
    shape = AttentionShape(1, 14, 2, 128, 1.0, (None,))
    case = Case(shape, dtype, 5, 0, has_norm, seed=1)
    inputs = inputs_of(case)
    expected = rotated(case, inputs)[:, : shape.num_heads]
    heads = heads_of(case, inputs)[:, : -shape.num_kv_heads]
    normed = heads if inputs.norm is None else inputs.norm.apply(heads)
    twin = Rotation(TABLES[shape.head_dim], inputs.positions).apply(normed)[:, : shape.num_heads]
    error, twin_error = ((x - expected).norm() for x in (run(case, inputs), twin))
    assert error * (1.5 if has_norm else 0.99) <= twin_error


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_rows_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype, has_norm: bool) -> None:
    """Alone, or beside a row of NaN: the same to the last bit."""
    shape = AttentionShape(1, 9, 3, 96, 1.0, (None,))
    case = Case(shape, dtype, 4, 0, has_norm, seed=2)
    together = inputs_of(case)
    queries = run(case, together)
    keys_and_values = gathered(together.pool, together.slots)
    qkv = together.qkv.clone()
    qkv[2] = torch.nan
    poisoned = replace(together, qkv=qkv, pool=torch.zeros_like(together.pool))
    others = [0, 1, 3]
    assert torch.equal(run(case, poisoned)[others], queries[others])
    for found, expected in zip(
        gathered(poisoned.pool, together.slots), keys_and_values, strict=True
    ):
        assert found[2].isnan().all()
        assert torch.equal(found[others], expected[others])
    for row in range(case.num_rows):
        rows = slice(row, row + 1)
        alone = replace(
            together,
            qkv=together.qkv[rows].clone(),
            positions=together.positions[rows].clone(),
            slots=together.slots[rows].clone(),
            pool=torch.zeros_like(together.pool),
        )
        assert torch.equal(run(case, alone)[0], queries[row])
        for found, expected in zip(gathered(alone.pool, alone.slots), keys_and_values, strict=True):
            assert torch.equal(found[0], expected[row])


def test_values_keep_every_bit() -> None:
    """What is no number, infinite, below the normal range or minus zero is copied as it is."""
    shape = AttentionShape(1, 1, 1, 64, 1.0, (None,))
    case = Case(shape, torch.bfloat16, 1, 0, False, seed=3)
    inputs = inputs_of(case)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40, -1e-40])
    inputs.qkv[0, 128 : 128 + len(special)] = special.to(inputs.qkv)
    run(case, inputs)
    _, values = gathered(inputs.pool, inputs.slots)
    expected = inputs.qkv[0, 128:].view(torch.int16)
    assert torch.equal(values[0, 0].view(torch.int16), expected)


def test_position_zero_turns_nothing() -> None:
    """Queries and keys of a sequence's first token are those of the projection."""
    shape = AttentionShape(1, 2, 1, 64, 1.0, (None,))
    case = Case(shape, torch.float32, 1, 0, False, seed=4)
    inputs = inputs_of(case)
    inputs.positions.zero_()
    assert torch.equal(run(case, inputs).flatten(), inputs.qkv[0, :128])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_thread_keeps_few_pairs(heads: tuple[int, int], head_dim: int) -> None:
    """Of every variant, whatever the dtype: 16 bytes of each half."""
    shape = AttentionShape(1, *heads, head_dim, 1.0, (None,))
    for dtype in TOLERANCE:
        for variant in rotation_variants(shape, BLOCK_SIZE, dtype):
            tile = variant.constants["TILE"] * variant.constants["PAIRS"]
            assert tile * dtype.itemsize <= 16 * 32 * variant.num_warps
