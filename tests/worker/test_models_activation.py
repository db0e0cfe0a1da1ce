"""Everything between the matrix products: right, and the same bits for a row in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from chairlift.worker.models.activation import silu_and_multiply
from chairlift.worker.models.rope import Rope, RotaryTable

NUM_ROWS = 200
HEAD_DIM = 40


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def normalise(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6).mul_(torch.full_like(x[0], 1.1))


def rotate(x: torch.Tensor) -> torch.Tensor:
    table = RotaryTable(Rope(10_000.0), HEAD_DIM, NUM_ROWS, x[:0, :0])
    heads = x.view(len(x), -1, HEAD_DIM)
    return table.at(torch.arange(len(x))).apply(heads)


def test_silu_and_multiply_follows_its_definition() -> None:
    """The first half of a row gates the second."""
    x = torch.randn(9, 2 * 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    gate, up = x.double().chunk(2, dim=-1)
    expected = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(silu_and_multiply(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [80, 760, 4880, 40_000])
@pytest.mark.parametrize("operation", [silu_and_multiply, normalise, rotate])
def test_a_rows_bits_depend_neither_on_other_rows_nor_on_threads(
    operation: Callable[[torch.Tensor], torch.Tensor], size: int, dtype: torch.dtype
) -> None:
    """One to 200 rows on one to five threads: row i is the same to the last bit."""
    num_rows = NUM_ROWS if size < 40_000 else 7
    x = torch.randn(num_rows, 2 * size, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.set_num_threads(1)
    expected = operation(x)
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        for rows in {1, 2, 7, min(33, num_rows), num_rows // 2, num_rows}:
            assert torch.equal(operation(x[:rows]), expected[:rows])
