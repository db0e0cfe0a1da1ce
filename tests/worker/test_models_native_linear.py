"""Products of our own: right for all sizes, a row from a row alone, used where they are right."""

from __future__ import annotations

import math

import pytest
import structlog
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.kernels.compiler import NativeKernelError
from chairlift.worker.models import linear_choice
from chairlift.worker.models.int8_linear import MAX_IN_FEATURES, Int8Linear, OneDnnChannels
from chairlift.worker.models.linear import Linear
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.native_linear import (
    STEP_BYTES,
    NativeChannels,
    NativeLinear,
    PackedMatrix,
    Unit,
    best_unit,
)
from chairlift.worker.models.row_quantizer import RowQuantizer
from tests.native import able
from tests.vnni import needs_vnni

ROW_COUNTS = (1, 2, 11, 12, 13, 16, 17, 24, 25, 31, 32, 33, 48, 49, 64, 65)
SIZES = st.tuples(*(st.integers(1, most) for most in (70, 70, 99)))  # rows, outputs, steps
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def units_for(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    """All that this processor multiplies such matrices with, or a skip that says why."""
    found = sorted((one for one in able() if one[0] in dtypes), key=str)
    none = pytest.param(None, None, marks=pytest.mark.skip(reason="this CPU has neither unit"))
    return pytest.mark.parametrize(("dtype", "unit"), found or [none])


def random(*size: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_bytes(low: int, *size: int) -> torch.Tensor:
    return torch.randint(low, low + 255, size, generator=torch.Generator().manual_seed(1))


def num_inputs(num_steps: int, dtype: torch.dtype, unit: Unit) -> int:
    return num_steps * STEP_BYTES[unit] // dtype.itemsize


@units_for(torch.float32, torch.bfloat16)
@given(SIZES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_float64(
    dtype: torch.dtype, unit: Unit, sizes: tuple[int, int, int], has_bias: bool
) -> None:
    """To the rounding of the type, whatever doesn't fill the last tile or vector."""
    num_rows, num_outputs, num_steps = sizes
    x = random(num_rows, num_inputs(num_steps, dtype, unit), dtype=dtype)
    weight = random(num_outputs, x.shape[1], seed=2, dtype=dtype)
    bias = random(num_outputs, seed=3, dtype=dtype) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = NativeLinear(weight, bias, unit)(x)
    assert found.dtype == dtype and found.shape == expected.shape
    scale = F.linear(x.double().abs(), weight.double().abs()).sqrt() + expected.abs()
    assert ((found.double() - expected).abs() <= TOLERANCE[dtype] * scale).all()


@units_for(torch.int8)
@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_int8_is_exact(dtype: torch.dtype, unit: Unit, sizes: tuple[int, int, int]) -> None:
    """A whole number, rounded once to float32, times its output's scale."""
    num_rows, num_outputs, num_steps = sizes
    size = num_inputs(num_steps, dtype, unit)
    values, weight = random_bytes(1, num_rows, size), random_bytes(-127, num_outputs, size)
    scales = random(num_outputs)
    found = NativeChannels(weight.to(dtype), scales, unit).product(values.to(torch.uint8))
    assert torch.equal(found, ((values - 128) @ weight.T).float() * scales)


@units_for(torch.int8)
def test_int8_of_the_longest_rows(dtype: torch.dtype, unit: Unit) -> None:
    """The greatest sum fits into 32 bits, though not before its offset is taken off."""
    size = MAX_IN_FEATURES // 64 * 64
    weight = torch.tensor([[127], [-127]], dtype=dtype).repeat(1, size)
    values = torch.tensor([[255], [1]], dtype=torch.uint8).repeat(1, size)
    found = NativeChannels(weight, torch.ones(2), unit).product(values)
    assert torch.equal(found, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) * 127**2 * size)


@units_for(torch.float32, torch.bfloat16)
def test_no_rows(dtype: torch.dtype, unit: Unit) -> None:
    """Nothing is computed, and nothing divided by nothing."""
    layer = NativeLinear(random(5, 64, dtype=dtype), None, unit)
    assert layer(random(0, 64, dtype=dtype)).shape == (0, 5)


@units_for(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("size", [(96, 96), (288, 768), (1152, 896), (256, 4864)])
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(
    dtype: torch.dtype, unit: Unit, size: tuple[int, int]
) -> None:
    """Nor on where it lies among them."""
    layer = NativeLinear(random(*size, dtype=dtype), None, unit)
    x = random(70, size[1], dtype=dtype)
    expected = layer(x)
    for count in ROW_COUNTS:
        assert torch.equal(layer(x[:count]), expected[:count])
        assert torch.equal(layer(x[-count:]), expected[-count:])


@units_for(torch.float32, torch.bfloat16)
def test_a_row_that_is_no_number_is_alone_with_it(dtype: torch.dtype, unit: Unit) -> None:
    """Rows share an instruction, and nothing else."""
    layer = NativeLinear(random(96, 896, seed=2, dtype=dtype), None, unit)
    x = random(40, 896, dtype=dtype)
    expected = layer(x)
    x[17] = math.nan
    found = layer(x)
    assert found[17].isnan().all()
    found[17] = expected[17]
    assert torch.equal(found, expected)


def test_a_unit_that_is_not_there() -> None:
    """An instruction that the processor doesn't have would kill the process."""
    with pytest.raises(NativeKernelError, match="no tiles"):
        PackedMatrix(torch.zeros(4, 96), Unit.TILES)


def test_the_best_unit() -> None:
    """Tiles before vectors, where rows come out even; none where they fit neither."""
    able = frozenset((torch.bfloat16, unit) for unit in Unit)
    assert best_unit(torch.zeros(4, 96, dtype=torch.bfloat16), able) is Unit.TILES
    assert best_unit(torch.zeros(4, 80, dtype=torch.bfloat16), able) is Unit.VECTORS
    assert best_unit(torch.zeros(4, 81, dtype=torch.bfloat16), able) is None
    assert best_unit(torch.zeros(4, 96), able) is None
    assert best_unit(torch.zeros(4, 96, dtype=torch.bfloat16), frozenset()) is None


@units_for(torch.float32, torch.bfloat16)
def test_layers_of_what_there_is(dtype: torch.dtype, unit: Unit) -> None:
    """Ours on this processor, oneDNN's for torch's kernels and for rows that fit nothing."""
    make = linear_factory("none", "native")
    assert isinstance(make(random(16, 96, dtype=dtype), None), NativeLinear)
    assert isinstance(make(random(16, 96).double(), None), Linear)
    assert isinstance(linear_factory("none", "torch")(random(16, 96, dtype=dtype), None), Linear)


@needs_vnni
@units_for(torch.int8)
def test_int8_layers_of_what_there_is(dtype: torch.dtype, unit: Unit) -> None:
    """Ours where rows come out even, else oneDNN's, and the same bits either way."""
    for size, channels in ((128, NativeChannels), (96, NativeChannels), (97, OneDnnChannels)):
        layer = linear_factory("int8", "native")(random(16, size), None)
        assert isinstance(layer, Int8Linear) and isinstance(layer._channels, channels)
        plain = Int8Linear(RowQuantizer(), random(16, size))
        assert torch.equal(layer(random(5, size)), plain(random(5, size)))


@units_for(torch.float32)
def test_products_that_are_wrong_are_not_used(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, unit: Unit
) -> None:
    """As a broken compiler could make them; the log says so."""
    monkeypatch.setattr(NativeLinear, "__call__", lambda self, x: x.new_zeros(len(x), 200))
    with structlog.testing.capture_logs() as lines:
        layer = linear_factory("none", "auto")(random(16, 96), None)
    assert isinstance(layer, Linear) and "wrong" in lines[0]["why"]


def test_a_processor_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is amiss there: oneDNN's kernels, and no word in the log."""
    monkeypatch.setattr(linear_choice, "abilities", frozenset)
    with structlog.testing.capture_logs() as lines:
        assert isinstance(linear_factory("none", "native")(random(16, 96), None), Linear)
    assert not lines
