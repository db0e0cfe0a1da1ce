"""Packed linear layers: right, and a row's bits do not depend on how many rows there are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chairlift.worker.models import linear
from chairlift.worker.models.linear import Linear
from chairlift.worker.models.linear_choice import linear_factory

ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64)


def make_weight(out_features: int, in_features: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out_features, in_features, generator=generator).to(dtype)


def make_rows(in_features: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(max(ROW_COUNTS), in_features, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_the_plain_product(dtype: torch.dtype, has_bias: bool) -> None:
    """The packed weight gives x @ weight.T + bias up to rounding."""
    weight, x = make_weight(48, 80, dtype), make_rows(80, dtype)
    bias = make_weight(48, 1, dtype).flatten() if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    found = Linear(weight, bias)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(96, 64), (864, 288), (288, 768), (1152, 896), (256, 4864)]
)
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(
    out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    """Row i computed among 1 to 64 rows is the same to the last bit: by products of our own
    always, by oneDNN's where the layer says so, which it does unless torch can't pack the type."""
    weight, x = make_weight(out_features, in_features, dtype), make_rows(in_features, dtype)
    chosen = linear_factory("none", "native")(weight.clone(), None)
    is_there = chosen.is_row_independent or not linear._can_pack(dtype)
    assert is_there, "answers depend on their neighbours here"
    for layer in (chosen, Linear(weight)):
        expected = layer(x)
        for count in ROW_COUNTS if layer.is_row_independent else ():
            assert torch.equal(layer(x[:count]), expected[:count])


def test_falls_back_where_the_packed_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's private operators the layer computes the same through F.linear."""

    def missing(*arguments: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "_pack", missing)
    linear._can_pack.cache_clear()
    try:
        weight, x = make_weight(48, 80, torch.float32), make_rows(80, torch.float32)
        assert torch.equal(Linear(weight)(x), F.linear(x, weight))
    finally:
        linear._can_pack.cache_clear()
