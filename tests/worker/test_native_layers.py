"""All layers by one call: the same bits as one kernel after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chairlift.worker.models.decoder import PlainLayers
from chairlift.worker.models.linear import Linear
from chairlift.worker.models.linear_choice import QuantizeName, linear_factory
from chairlift.worker.models.loader import LoadedModel, load_model
from chairlift.worker.models.native_layers import NativeLayers, layers_of
from tests.checkpoints import VARIANTS, make_checkpoint
from tests.native import needs_our_products
from tests.vnni import needs_vnni
from tests.worker.test_models import Driver, make_prompts, shuffled_blocks

float32, int8 = needs_our_products(torch.float32), needs_our_products(torch.int8)
KINDS: tuple[Any, ...] = (
    pytest.param("float32", "none", marks=float32),
    pytest.param("bfloat16", "none", marks=needs_our_products(torch.bfloat16)),
    pytest.param("float32", "int8", marks=(int8, needs_vnni)),
    pytest.param("bfloat16", "int8", marks=(int8, needs_vnni)),
)
MIN_ROWS = 70  # padded up to it


def load(folder: Path, dtype: Any, quantize: QuantizeName) -> LoadedModel:
    return load_model(folder, dtype, make_linear=linear_factory(quantize, "native"))


@pytest.mark.parametrize(("dtype", "quantize"), KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_as_one_kernel_after_the_other(
    variant: str, dtype: Any, quantize: QuantizeName, tmp_path: Path
) -> None:
    """Chunks beside decodes, with and without padding."""
    make_checkpoint(variant, tmp_path)
    model = load(tmp_path, dtype, quantize)
    ours, plain = (Driver(model, shuffled_blocks(), "native") for _ in range(2))
    plain.layers = PlainLayers(model.decoder, plain.kernels)
    assert isinstance(ours.layers, NativeLayers)
    pairs = [(ours.add(prompt), plain.add(prompt)) for prompt in make_prompts()]
    for num_rows in (1, 31, 40, 1):
        for min_rows in (1, MIN_ROWS):
            counts = [min(num_rows, one.num_uncomputed_tokens) for one, _ in pairs]
            ours.min_rows = plain.min_rows = min_rows
            steps = [[(pair[i], n) for pair, n in zip(pairs, counts, strict=True)] for i in (0, 1)]
            found, expected = ours.step(steps[0], True), plain.step(steps[1], True)
            assert not found.isnan().any()
            assert torch.equal(found, expected)
            for sequence in (one for pair in pairs for one in pair):
                if not sequence.num_uncomputed_tokens:
                    sequence.append(7)


@float32
def test_one_after_the_other_where_a_kernel_is_torchs(tmp_path: Path) -> None:
    """Another attention, or a single matrix that isn't ours."""
    make_checkpoint("llama", tmp_path)
    model = load(tmp_path, "float32", "none")
    assert isinstance(Driver(model, [], "torch").layers, PlainLayers)
    layer, native = model.decoder.weights.layers[-1], Driver(model, [], "native").kernels
    object.__setattr__(layer, "down", Linear(torch.zeros(64, 128)))
    assert isinstance(layers_of(model.decoder, native), PlainLayers)
