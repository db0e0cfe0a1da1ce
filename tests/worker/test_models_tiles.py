"""Products by tiles: right for all sizes, and a row from a row alone.

Only where there are tiles, but for what a worker does without.
"""

from __future__ import annotations

import math

import pytest
import structlog
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker.models import linear_choice
from chairlift.worker.models.int8_linear import Int8Linear, OneDnnChannels
from chairlift.worker.models.linear import Linear
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.row_quantizer import RowQuantizer
from chairlift.worker.models.tile_linear import TileChannels, TileLinear, TileMatrix, has_tiles
from tests.vnni import needs_vnni

needs_tiles = pytest.mark.skipif(not has_tiles(), reason="this CPU has no AMX")

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5))  # rows, outputs, lines


def random(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def random_bytes(low: int, *size: int) -> torch.Tensor:
    return torch.randint(low, low + 255, size, generator=torch.Generator().manual_seed(1))


@needs_tiles
@given(SIZES, st.booleans())
@settings(max_examples=100, deadline=None)
def test_bfloat16_products(sizes: tuple[int, int, int], has_bias: bool) -> None:
    """As in float64, to the rounding of the result; what lies beyond the rows is left alone."""
    num_rows, num_outputs, num_lines = sizes
    x, weight = random(num_rows, 32 * num_lines), random(num_outputs, 32 * num_lines, seed=2)
    bias = random(num_outputs, seed=3) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = TileLinear(weight, bias)(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=2**-8)


@needs_tiles
@needs_vnni
@given(SIZES)
@settings(max_examples=50, deadline=None)
def test_int8_products(sizes: tuple[int, int, int]) -> None:
    """The bits of oneDNN's, with which they are exchangeable."""
    num_rows, num_outputs, num_lines = sizes
    values = random_bytes(1, num_rows, 64 * num_lines).to(torch.uint8)
    weight = random_bytes(-127, num_outputs, 64 * num_lines).to(torch.int8)
    scales = random(num_outputs).float()
    expected = OneDnnChannels(weight, scales).product(values)
    assert torch.equal(TileChannels(weight, scales).product(values), expected)


@needs_tiles
def test_a_row_that_is_no_number_is_alone_with_it() -> None:
    """Rows share an instruction, and nothing else."""
    x, layer = random(40, 896), TileLinear(random(96, 896, seed=2))
    expected = layer(x)
    x[17] = math.nan
    found = layer(x)
    assert found[17].isnan().all()
    found[17] = expected[17]
    assert torch.equal(found, expected)


@needs_tiles
def test_what_tiles_take() -> None:
    """bfloat16 and bytes in whole lines; all others are oneDNN's."""
    make, weight = linear_factory("none", "native"), random(16, 96)
    assert isinstance(make(weight, None), TileLinear)
    assert isinstance(make(weight.float(), None), Linear)
    assert isinstance(make(random(16, 80), None), Linear)
    assert not TileMatrix.takes(torch.zeros(16, 96, dtype=torch.int8))


@needs_tiles
@needs_vnni
def test_int8_layers_use_them() -> None:
    for inputs, channels in ((128, TileChannels), (96, OneDnnChannels)):
        layer = linear_factory("int8", "native")(random(16, inputs), None)
        assert isinstance(layer, Int8Linear) and isinstance(layer._channels, channels)
        plain = Int8Linear(RowQuantizer(), random(16, inputs))
        assert torch.equal(layer(random(5, inputs)), plain(random(5, inputs)))


@needs_tiles
@pytest.mark.parametrize("broken", ["bfloat16", "int8"])
def test_tiles_that_multiply_wrongly_are_not_used(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """As a broken compiler could make them; the log says so."""
    if broken == "bfloat16":
        monkeypatch.setattr(TileLinear, "__call__", lambda self, x: x.new_zeros(len(x), 200))
    else:
        monkeypatch.setattr(TileChannels, "product", lambda self, x: torch.zeros(len(x), 200))
    with structlog.testing.capture_logs() as lines:
        assert linear_factory("none", "auto") is Linear
    assert "wrong" in lines[0]["why"]


def test_a_processor_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is amiss there: oneDNN's kernels, and no word in the log."""
    monkeypatch.setattr(linear_choice, "has_tiles", lambda: False)
    with structlog.testing.capture_logs() as lines:
        assert linear_factory("none", "native") is Linear
    assert not lines
