"""Int8 layers: exactly what their arithmetic says, a row from a row, and never silently wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.shared.errors import ModelError
from chairlift.worker.kernels.compiler import NativeKernelError
from chairlift.worker.models import int8_linear, native_row_quantizer
from chairlift.worker.models.int8_linear import MAX_IN_FEATURES, Int8Linear
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.loader import load_model
from chairlift.worker.models.native_row_quantizer import NativeRowQuantizer
from chairlift.worker.models.row_quantizer import LEAST, RowQuantizer
from tests.checkpoints import make_checkpoint
from tests.vnni import needs_vnni

pytestmark = needs_vnni

NATIVE, TORCH = NativeRowQuantizer(), RowQuantizer()
quantizers = pytest.mark.parametrize("quantizer", [NATIVE, TORCH], ids=["native", "torch"])
ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100)
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [(1, 1), (5, 3), (48, 80), (96, 70), (33, 129), (256, 4864), (1152, 896)]  # out, in
NOT_FINITE = [math.nan, math.inf, -math.inf]


def random(*size: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127 and scales [num_rows, 1], in float32 as the layer has them."""
    rows = rows.float()
    greatest = rows.abs().amax(1, keepdim=True)
    numbers = (rows * (127 / greatest.double()).float()).round()
    return numbers.double(), (greatest.double() / 127).float()


def oracle(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same quantization; products of whole numbers are exact in float64."""
    (a, a_scales), (w, w_scales) = quantized(x), quantized(weight)
    y = (a @ w.T).float() * w_scales.T
    if bias is None:
        return (y * a_scales).to(x.dtype)
    return (y.double() * a_scales.double() + bias.double()).float().to(x.dtype)


@quantizers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_bit_is_that_of_the_oracle(
    quantizer: RowQuantizer, shape: tuple[int, int], has_bias: bool, dtype: torch.dtype
) -> None:
    """With whatever sizes, types and bias, the layer gives what exact sums of products give."""
    out_features, in_features = shape
    weight = random(*shape, dtype=dtype)
    bias = random(out_features, seed=2, dtype=dtype) if has_bias else None
    x = random(17, in_features, seed=3, dtype=dtype)
    y = Int8Linear(quantizer, weight, bias)(x)
    assert y.dtype == dtype
    assert torch.equal(y, oracle(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_near_the_layer_that_it_stands_for(dtype: torch.dtype) -> None:
    """Of Gaussian rows and weights the product errs by about one per cent."""
    weight, x = random(64, 896, dtype=dtype), random(32, 896, seed=2, dtype=dtype)
    expected = x.double() @ weight.double().T
    error = (Int8Linear(NATIVE, weight)(x).double() - expected).pow(2).mean().sqrt()
    assert 0.002 < error / expected.pow(2).mean().sqrt() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(96, 64), (96, 70), (1152, 896), (9728, 896), (256, 4864)]
)
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    """Among any number of rows, in any place, beside rows a million times as large."""
    layer = Int8Linear(NATIVE, random(out_features, in_features, dtype=dtype))
    x = random(max(ROW_COUNTS), in_features, seed=2, dtype=dtype)
    alone = torch.cat([layer(row[None]) for row in x])
    for count in ROW_COUNTS:
        assert torch.equal(layer(x[-count:]), alone[-count:])
        for place in {0, count // 2, count - 1}:
            crowd = x[:count] * 1e6
            crowd[place] = x[place]
            assert torch.equal(layer(crowd)[place], alone[place])


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Of any size and scale, some of zeros, some with one large value; not always contiguous."""
    num_rows, size = draw(st.integers(1, 40)), draw(st.integers(1, 200))
    x = random(num_rows, size + 3, seed=draw(st.integers(0, 99)))[:, draw(st.integers(0, 3)) :]
    x[draw(st.integers(0, num_rows - 1))] *= draw(st.sampled_from([0.0, 1e-38, 1e-30, 1e30]))
    x[draw(st.integers(0, num_rows - 1)), 0] = draw(st.sampled_from([0.0, 7.0, 1e9, *NOT_FINITE]))
    return x.to(draw(st.sampled_from(DTYPES)))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@settings(deadline=None)
@given(rows())
def test_the_kernel_quantizes_as_torch_does(x: torch.Tensor) -> None:
    """Bytes and scales are the same to the last bit."""
    found, expected = NATIVE.quantize(x), TORCH.quantize(x)
    assert torch.equal(found.values, expected.values)
    assert same(found.scales, expected.scales)


@settings(deadline=None)
@given(rows(), st.booleans(), st.sampled_from(DTYPES))
def test_the_kernel_rescales_as_torch_does(
    x: torch.Tensor, has_bias: bool, dtype: torch.dtype
) -> None:
    """Products times scales, with a bias or without, are the same to the last bit."""
    y, scales = x.float().contiguous(), random(len(x), seed=5).abs() * 0.01
    bias = random(y.shape[1], seed=6) if has_bias else None
    expected = TORCH.rescale(y.clone(), scales, bias, dtype)
    assert same(NATIVE.rescale(y, scales, bias, dtype), expected)


@quantizers
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_not_finite_stays_so_alone(
    quantizer: RowQuantizer, dtype: torch.dtype
) -> None:
    """NaN or infinity anywhere in a row makes all of that row's answer NaN, and no other's."""
    layer = Int8Linear(quantizer, random(48, 83, dtype=dtype), random(48, seed=4, dtype=dtype))
    x = random(9, 83, seed=2, dtype=dtype)
    expected = layer(x)
    for poison in NOT_FINITE:
        for place in (0, 16, 82):
            poisoned = x.clone()
            poisoned[4, place] = poison
            y = layer(poisoned)
            assert y[4].isnan().all()
            y[4] = expected[4]
            assert torch.equal(y, expected)


@quantizers
def test_a_weight_that_is_not_finite_shows(quantizer: RowQuantizer) -> None:
    """The output channel of a broken weight is NaN, the others are as ever."""
    weight, x = random(8, 40), random(3, 40, seed=2)
    expected = Int8Linear(quantizer, weight)(x)
    weight[5, 7] = math.nan
    y = Int8Linear(quantizer, weight)(x)
    assert y[:, 5].isnan().all()
    y[:, 5] = expected[:, 5]
    assert torch.equal(y, expected)


@quantizers
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_give_the_bias(quantizer: RowQuantizer, dtype: torch.dtype) -> None:
    """So do rows and weights so small that their scale would be none."""
    weight, bias = random(6, 20, dtype=dtype), random(6, seed=2, dtype=dtype)
    x = torch.zeros(3, 20, dtype=dtype)
    x[1], x[2] = LEAST / 4, -LEAST / 4
    assert torch.equal(Int8Linear(quantizer, weight, bias)(x), bias.expand(3, -1))
    ones = torch.ones(3, 20, dtype=dtype)
    assert torch.equal(
        Int8Linear(quantizer, torch.zeros_like(weight), bias)(ones), bias.expand(3, -1)
    )


def test_the_greatest_sums_do_not_overflow() -> None:
    """All values at their limit, with the most inputs that are taken."""
    weight, x = torch.ones(16, MAX_IN_FEATURES), torch.full((2, MAX_IN_FEATURES), -2.0)
    x[1] *= -1
    expected = oracle(x, weight, None)
    assert torch.equal(Int8Linear(NATIVE, weight)(x), expected)
    with pytest.raises(ModelError, match="--quantize none"):
        Int8Linear(NATIVE, torch.ones(1, MAX_IN_FEATURES + 1))


def no_product(*arguments: object) -> torch.Tensor:
    raise RuntimeError("no such operator")


def wrong_product(weight: object, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(values), 16)


@pytest.mark.parametrize(
    ("place", "stand_in", "why"),
    [
        ("has_vnni", lambda: False, "needs a CPU with VNNI"),
        ("OneDnnChannels.product", no_product, "no such operator"),
        ("OneDnnChannels.product", wrong_product, "wrong on this CPU"),
    ],
)
def test_a_machine_that_cannot_is_told_so(
    place: str, stand_in: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 is refused, saying why and what to do, where it is not right."""
    monkeypatch.setattr(f"{int8_linear.__name__}.{place}", stand_in)
    with pytest.raises(ModelError, match=f"{why}.*--quantize none"):
        linear_factory("int8", "auto")
    assert linear_factory("none", "auto")(random(4, 4), None).is_row_independent


def quantizer_of(layer: object) -> type[RowQuantizer]:
    assert isinstance(layer, Int8Linear)
    return type(layer._quantizer)


def test_without_a_compiler_torch_quantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line in the log; asked for by name, the kernels' absence is an error."""

    def no_kernels() -> NoReturn:
        raise NativeKernelError("no compiler")

    monkeypatch.setattr(native_row_quantizer, "load_kernels", no_kernels)
    with structlog.testing.capture_logs() as lines:
        layer = linear_factory("int8", "auto")(random(4, 4), None)
    assert quantizer_of(layer) is RowQuantizer
    assert len(lines) == 1 and lines[0]["why"]
    with pytest.raises(NativeKernelError):
        linear_factory("int8", "native")


def test_kernels_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's on request, and where a broken compiler has made something else of ours."""
    weight = random(4, 4)
    assert quantizer_of(linear_factory("int8", "auto")(weight, None)) is NativeRowQuantizer
    assert quantizer_of(linear_factory("int8", "torch")(weight, None)) is RowQuantizer
    monkeypatch.setattr(NativeRowQuantizer, "rescale", lambda self, y, *others: y)
    assert quantizer_of(linear_factory("int8", "auto")(weight, None)) is RowQuantizer


def test_all_matrices_but_the_embedding_are_quantized(tmp_path: Path) -> None:
    """The loader makes int8 layers of every projection and of the head, and of nothing else."""
    make_checkpoint("llama", tmp_path)
    model = load_model(tmp_path, "bfloat16", make_linear=linear_factory("int8", "auto"))
    weights = model.decoder.weights
    layers = [weights.head]
    for layer in weights.layers:
        layers += [layer.qkv, layer.output, layer.gate_up, layer.down]
    assert all(isinstance(layer, Int8Linear) for layer in layers)
    assert weights.embedding.dtype == torch.bfloat16
