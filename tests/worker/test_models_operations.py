"""Everything between the matrix products: right, and the same bits for a row in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from chairlift.worker.models.native_operations import NativeOperations
from chairlift.worker.models.operations import Operations
from chairlift.worker.models.rope import Rope, RotaryTable

NUM_ROWS = 200
HEAD_DIM = 40
EPS = 1e-6
OPERATIONS = [Operations(), NativeOperations()]
SIZES = [1, 15, 16, 80, 760, 4880]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

Operation = Callable[[Operations, torch.Tensor], torch.Tensor]


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def normals(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def silu_and_multiply(operations: Operations, x: torch.Tensor) -> torch.Tensor:
    return operations.silu_and_multiply(x)


def add_and_norm(operations: Operations, x: torch.Tensor) -> torch.Tensor:
    weight = normals(x.shape[1], seed=2, dtype=x.dtype)
    return operations.add_and_norm(x.clone(), x.flip(1).contiguous(), weight, EPS)


def rotate(operations: Operations, x: torch.Tensor) -> torch.Tensor:
    table = RotaryTable(Rope(10_000.0), HEAD_DIM, NUM_ROWS)
    return table.at(torch.arange(len(x))).apply(x.view(len(x), -1, HEAD_DIM))


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_silu_and_multiply_follows_its_definition(
    operations: Operations, size: int, dtype: torch.dtype
) -> None:
    """The first half of a row gates the second, also far from zero."""
    x = (8 * normals(9, 2 * size)).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    expected = gate / (1 + torch.exp(-gate)) * up
    tolerance = TOLERANCE[dtype]
    found = operations.silu_and_multiply(x).double()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_add_and_norm_adds_in_place_and_follows_its_definition(
    operations: Operations, size: int, dtype: torch.dtype
) -> None:
    """What is normed is the sum as it is kept, rounded to the model's dtype."""
    x, delta = normals(9, size, dtype=dtype), normals(9, size, seed=1, dtype=dtype)
    weight, total = normals(size, seed=2, dtype=dtype), x + delta
    found = operations.add_and_norm(x, delta, weight, EPS)
    assert torch.equal(x, total)
    mean_square = total.double().square().mean(-1, keepdim=True)
    expected = total.double() / (mean_square + EPS).sqrt() * weight.double()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_no_number_stays_in_its_row(operations: Operations, dtype: torch.dtype) -> None:
    """A NaN comes out as one, and no other row sees it."""
    x = normals(5, 80, dtype=dtype)
    for operation in (silu_and_multiply, add_and_norm):
        expected = operation(operations, x)
        x[2, 3] = torch.nan
        found = operation(operations, x)
        assert found[2].isnan().any()
        others = [0, 1, 3, 4]
        assert torch.equal(found[others], expected[others])


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [80, 760, 4880, 40_000])
@pytest.mark.parametrize("operation", [silu_and_multiply, add_and_norm, rotate])
def test_a_rows_bits_depend_neither_on_other_rows_nor_on_threads(
    operation: Operation, operations: Operations, size: int, dtype: torch.dtype
) -> None:
    """One to 200 rows on one to five threads: row i is the same to the last bit."""
    num_rows = NUM_ROWS if size < 40_000 else 7
    x = normals(num_rows, 2 * size, seed=1, dtype=dtype)
    torch.set_num_threads(1)
    expected = operation(operations, x)
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        for rows in {1, 2, 7, min(33, num_rows), num_rows // 2, num_rows}:
            assert torch.equal(operation(operations, x[:rows]), expected[:rows])
