"""The kernels between the matrix products against their definitions in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from chairlift.worker.cuda.operations import TritonOperations, operation_variants
from chairlift.worker.models.operations import Operations
from tests.worker.cuda.device import DEVICE

EPS = 1e-6
SIZES = (1, 2, 15, 64, 576, 760, 1024, 3072, 16384)
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half an ulp
SLACK = 1.01  # what float32 adds to the one rounding


@dataclass(frozen=True)
class Case:
    """A shape, a dtype and how large the numbers are."""

    num_rows: int
    size: int
    dtype: torch.dtype
    spread: float
    has_delta: bool
    seed: int

    def __str__(self) -> str:
        delta = "delta" if self.has_delta else "plain"
        return f"{self.num_rows}x{self.size}-{self.dtype}-{self.spread}-{delta}-{self.seed}"

    def normals(self, *size: int, salt: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3 * self.seed + salt)
        numbers = self.spread * torch.randn(size, generator=generator)
        return numbers.to(self.dtype).to(DEVICE)


def case_of(seed: int) -> Case:
    draw = random.Random(seed)
    return Case(
        num_rows=draw.choice((0, 1, 2, 5)),
        size=SIZES[seed % len(SIZES)],
        dtype=draw.choice(tuple(TOLERANCE)),
        spread=draw.choice((1e-3, 1.0, 30.0)),
        has_delta=draw.random() < 0.7,
        seed=seed,
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor, smallest: float) -> float:
    """The largest of all elements; below `smallest` absolute errors count against it."""
    if found.numel() == 0:
        return 0.0
    errors = (found.double() - expected).abs() / expected.abs().clamp_min(smallest)
    return float(errors.max())


def normed(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The definition, in float64."""
    mean_square = total.double().square().mean(-1, keepdim=True)
    return total.double() / (mean_square + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("case", [case_of(seed) for seed in range(54)], ids=Case.__str__)
def test_add_and_norm_adds_in_place_and_rounds_once(case: Case) -> None:
    """The sum is kept as torch rounds it; its norm is half an ulp from the definition's."""
    x, weight = case.normals(case.num_rows, case.size), case.normals(case.size, salt=1)
    delta = case.normals(case.num_rows, case.size, salt=2) if case.has_delta else None
    total = x.clone() if delta is None else x + delta
    found = TritonOperations().add_and_norm(x, delta, weight, EPS)
    assert torch.equal(x, total)
    assert found.dtype == case.dtype and found.shape == x.shape
    smallest = float(torch.finfo(case.dtype).tiny)
    error = relative_error(found, normed(total, weight), smallest)
    assert error <= SLACK * TOLERANCE[case.dtype]


@pytest.mark.filterwarnings("ignore:overflow")  # the interpreter's exp; infinity is right there
@pytest.mark.parametrize("case", [case_of(seed) for seed in range(100, 154)], ids=Case.__str__)
def test_silu_and_multiply_rounds_once(case: Case) -> None:
    """The first half of a row gates the second, half an ulp from the definition."""
    gate_up = case.normals(case.num_rows, 2 * case.size)
    gate, up = gate_up.double().chunk(2, dim=-1)
    expected = gate * torch.sigmoid(gate) * up
    found = TritonOperations().silu_and_multiply(gate_up)
    assert found.dtype == case.dtype and found.shape == (case.num_rows, case.size)
    smallest = max(1e-20, float(torch.finfo(case.dtype).tiny))  # below, exp(-gate) may be infinite
    error = relative_error(found, expected, smallest)
    assert error <= SLACK * TOLERANCE[case.dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_nearer_to_the_definition_than_the_twins(dtype: torch.dtype) -> None:
    """The twin rounds on the way; together its errors are larger by a third at least."""
    case = Case(5, 760, dtype, 1.0, True, seed=1)
    x, delta = case.normals(5, 760), case.normals(5, 760, salt=1)
    weight, gate_up = case.normals(760, salt=2), case.normals(5, 1520)
    gate, up = gate_up.double().chunk(2, dim=-1)
    errors = []
    for operations in (TritonOperations(), Operations()):
        norm_error = operations.add_and_norm(x.clone(), delta, weight, EPS) - normed(
            x + delta, weight
        )
        silu_error = operations.silu_and_multiply(gate_up) - gate * torch.sigmoid(gate) * up
        errors.append(torch.stack((norm_error.norm(), silu_error.norm())))
    assert (1.33 * errors[0] < errors[1]).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [15, 760, 1024])
def test_a_rows_bits_do_not_depend_on_its_neighbours(size: int, dtype: torch.dtype) -> None:
    """Alone, among others, or beside rows of NaN: the same to the last bit."""
    case, operations = Case(4, size, dtype, 1.0, True, seed=2), TritonOperations()
    x, delta = case.normals(4, 2 * size), case.normals(4, 2 * size, salt=1)
    weight = case.normals(2 * size, salt=2)

    def results(x: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed = operations.add_and_norm(x.clone(), delta, weight, EPS)
        return normed, operations.silu_and_multiply(x)

    together = results(x, delta)
    for row in range(4):
        alone = results(x[row : row + 1], delta[row : row + 1])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
    x[2] = torch.nan
    for found, expected in zip(results(x, delta), together, strict=True):
        assert found[2].isnan().all()
        assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what the interpreter says of infinity
def test_every_number_is_added_as_torch_adds() -> None:
    """All of bfloat16, one to another: ties, infinities and NaN. But for numbers below the normal
    range, which the interpreter reads wrong."""
    patterns = torch.arange(2**16).to(torch.int16).view(torch.bfloat16).to(DEVICE)
    patterns[patterns.abs() < torch.finfo(torch.bfloat16).tiny] = 0
    shuffled = patterns[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    x, delta = patterns.view(4, -1).clone(), shuffled.view(4, -1)
    total = x + delta
    TritonOperations().add_and_norm(x, delta, delta[0].contiguous(), EPS)
    torch.testing.assert_close(x, total, rtol=0, atol=0, equal_nan=True)


def test_a_row_of_zeros_has_a_norm_of_zeros() -> None:
    """eps keeps the division finite."""
    x = torch.zeros(2, 64, device=DEVICE)
    found = TritonOperations().add_and_norm(x, None, torch.ones(64, device=DEVICE), EPS)
    assert torch.equal(found, x)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_variants_hold_whole_rows_in_few_registers(dtype: torch.dtype) -> None:
    """No thread of any variant keeps more than 32 elements of a row."""
    for size in SIZES:
        for variant in operation_variants(size, size, dtype):
            block = variant.constants["BLOCK"]
            assert block >= size or variant.name.startswith("silu")
            assert block <= 32 * 32 * variant.num_warps
