"""Rotary frequencies and rotations against their definitions and transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from chairlift.worker.models.config_section import ConfigSection
from chairlift.worker.models.rope import Rope, RotaryTable
from chairlift.worker.models.rope_config import read_rope

HEAD_DIM = 32
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn_unscaled": {"rope_type": "yarn", "factor": 1.0},
    "yarn_untruncated": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn_attention_factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.7},
    "yarn_mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
}


def section_of(values: dict[str, Any]) -> ConfigSection:
    return ConfigSection({"max_position_embeddings": 2048, **values}, Path("config.json"))


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_every_type_equals_that_of_transformers(name: str, theta: float) -> None:
    """Frequencies and magnitude are those that transformers derives from the same keys."""
    parameters = {**SCALINGS[name], "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters=dict(parameters),
    )
    oracle = LlamaRotaryEmbedding(config)
    rope = read_rope(section_of({"rope_parameters": parameters}))
    torch.testing.assert_close(
        rope.inverse_frequencies(HEAD_DIM), oracle.inv_freq, rtol=1e-5, atol=1e-9
    )
    assert math.isclose(rope.magnitude, oracle.attention_scaling, rel_tol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_both_spellings_mean_the_same(name: str) -> None:
    """rope_theta beside rope_scaling, with its older key `type`, reads as rope_parameters does."""
    scaling = dict(SCALINGS[name])
    new = read_rope(section_of({"rope_parameters": {**scaling, "rope_theta": 5000.0}}))
    old = section_of({"rope_theta": 5000.0, "rope_scaling": scaling})
    assert read_rope(old) == new
    scaling["type"] = scaling.pop("rope_type")
    assert read_rope(section_of({"rope_theta": 5000.0, "rope_scaling": scaling})) == new


def test_null_scaling_is_the_plain_type() -> None:
    """`rope_scaling: null`, as most files have it, scales nothing."""
    values = json.loads('{"rope_theta": 10000, "rope_scaling": null}')
    assert read_rope(section_of(values)) == Rope(10_000.0)


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    """Pair (i, i + half) is multiplied, as a complex number, by e^(i position frequency)."""
    rope, generator = Rope(100.0), torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, HEAD_DIM, generator=generator)
    positions = torch.tensor([0, 1, 7, 7, 63])
    table = RotaryTable(rope, HEAD_DIM, 64)
    turned = table.at(positions).apply(x)
    half = HEAD_DIM // 2
    angles = positions[:, None, None].double() * rope.inverse_frequencies(HEAD_DIM).double()
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        turned.double(), torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=0
    )
