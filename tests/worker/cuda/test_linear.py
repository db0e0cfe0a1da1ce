"""Products that have the same bits in any company, and how one sees that they don't."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from chairlift.shared.errors import ModelError
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.cuda import platform
from chairlift.worker.cuda.device_step import StepSizes
from chairlift.worker.cuda.linear import (
    LEAST_ROWS,
    CudaLinear,
    UndividedLinear,
    check_rows,
    leave_sums_undivided,
    multiply_row,
)
from chairlift.worker.cuda.platform import CudaPlatform
from tests.worker.cuda.device import DEVICE

SIZES = (16, 20, 24, 100)


class Exact(UndividedLinear):
    """Sums of small whole numbers, which are exact in any order."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.round())


class Divided(Exact):
    """As if sums of some row were divided, where there are so many rows or more."""

    def __init__(self, weight: torch.Tensor, least: int, row: int) -> None:
        super().__init__(weight, None, DEVICE)
        self._least, self._row = least, row

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = super().__call__(x)
        if len(x) >= self._least:
            out[self._row, 0] += 0.5
        return out


def whole_numbers(*size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(-3, 4, size, generator=generator).float()


def test_rows_are_compared_at_all_sizes() -> None:
    """Whichever row differs, and in the largest size alone; the message has the matrix and the
    size, and what to do."""
    check_rows([Exact(whole_numbers(8, 32), None, DEVICE)], SIZES)
    for least, row, size in ((100, 99, 100), (20, 0, 20), (24, 17, 24)):
        layers = [
            Exact(whole_numbers(8, 32), None, DEVICE),
            Divided(whole_numbers(5, 33), least, row),
        ]
        with pytest.raises(ModelError, match=f"5 x 33 float32 .* with {size} rows than"):
            check_rows(layers, SIZES)


@pytest.mark.parametrize("num_rows", [1, 3, LEAST_ROWS - 1, LEAST_ROWS, LEAST_ROWS + 1])
def test_few_rows_are_padded(num_rows: int) -> None:
    """With nothing that shows, bias or not."""
    weight, x = whole_numbers(8, 32).to(DEVICE), whole_numbers(num_rows, 32).to(DEVICE)
    for bias in (None, whole_numbers(8).to(DEVICE)):
        found = UndividedLinear(weight, bias, DEVICE)(x)
        assert torch.equal(found, CudaLinear(weight, bias, DEVICE)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 8), (7, 96), (10, 130), (5, 2048), (3, 2056)])
def test_one_row_times_a_matrix(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Of any size, with a bias or without, rounded once."""
    generator = torch.Generator().manual_seed(sum(size))
    weight, x, bias = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for shape in (size, (1, size[1]), size[:1])
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for own in (None, bias):
        exact = F.linear(x.double(), weight.double(), None if own is None else own.double())
        found = multiply_row(x, weight, own)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=1e-5)


def test_what_the_environment_says_of_cublas_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what it leaves open is decided here."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delenv("CUBLASLT_WORKSPACE_SIZE", raising=False)
    leave_sums_undivided()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["CUBLASLT_WORKSPACE_SIZE"] == "1"


def platform_with(
    sizes: StepSizes, monkeypatch: pytest.MonkeyPatch, *, deterministic: bool = True
) -> CudaPlatform:
    """Of a GPU that isn't there, whose executor has steps of these sizes."""
    monkeypatch.setattr(platform, "leave_sums_undivided", Mock())
    monkeypatch.setattr(platform, "GpuExecutor", lambda *_: Mock(sizes=sizes))
    settings = WorkerSettings(
        deterministic=deterministic, max_num_batched_tokens=sizes.max_num_rows
    )
    return CudaPlatform(settings, torch.device("cuda"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_worker_that_is_to_be_deterministic_checks_its_products(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, at the sizes that its steps have: before it takes a request."""
    sizes = StepSizes(4, 200, LEAST_ROWS)
    cuda = platform_with(sizes, monkeypatch, deterministic=deterministic)
    decoder = Mock(products=[Divided(whole_numbers(5, 33), 200, 7)])
    if deterministic:
        with pytest.raises(ModelError, match="with 224 rows"):
            cuda.executor(decoder, Mock(), Mock())
    else:
        made = cuda.executor(decoder, Mock(), Mock())
        assert isinstance(made, Mock) and made.sizes is sizes


def test_the_output_matrix_is_checked_at_numbers_of_rows_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences that sample are fewer than a step's rows, and scores of a prompt come in slices."""
    cuda = platform_with(StepSizes(67, 200, LEAST_ROWS), monkeypatch)
    for size in (33, 67):
        head = Divided(whole_numbers(5, 33), size, size - 1)
        with pytest.raises(ModelError, match=f"with {size} rows"):
            cuda.executor(Mock(products=[], weights=Mock(head=head)), Mock(), Mock())


def test_a_matrix_with_a_bias_is_another() -> None:
    """cuBLAS adds it in an algorithm of its own: each of the two is tried."""
    plain = Exact(whole_numbers(5, 33), None, DEVICE)
    divided = Divided(whole_numbers(5, 33), 100, 99)
    divided._bias = torch.zeros(5, device=DEVICE)
    with pytest.raises(ModelError, match="5 x 33"):
        check_rows([divided, plain], SIZES)


ON_THE_DEVICE = f"""
import torch
from chairlift.worker.cuda.linear import UndividedLinear, check_rows, leave_sums_undivided

leave_sums_undivided()
device = torch.device("cuda")
weight = torch.randn(1024, 3072, dtype=torch.bfloat16)
check_rows([UndividedLinear(weight, None, device)], range({LEAST_ROWS}, 300, 4))
"""


@pytest.mark.gpu
def test_cublas_leaves_sums_undivided() -> None:
    """In a process of its own, where nothing was multiplied before: a matrix that has other bits at
    other numbers of rows where cuBLAS may divide its sums."""
    subprocess.run([sys.executable, "-c", ON_THE_DEVICE], check=True, timeout=100)
