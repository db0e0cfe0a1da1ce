"""config.json: what is read from it, and what is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from chairlift.shared.errors import ModelError
from chairlift.worker.models.config import ModelConfig, read_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}


def read(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """Reads LLAMA with these changes; a change to ... removes the key."""
    values = {key: value for key, value in {**LLAMA, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(folder)


def test_absent_keys_have_the_families_defaults(tmp_path: Path) -> None:
    """No key-value heads: as many as heads; no head_dim: the hidden size's share; not tied."""
    config = read(tmp_path, num_key_value_heads=...)
    assert (config.num_kv_heads, config.head_dim, config.has_tied_head) == (4, 16, False)
    assert not (config.has_qkv_bias or config.has_output_bias or config.has_mlp_bias)
    assert config.attention_shape.scale == 0.25


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 7], None, (2, 7)),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (2, {"eos_token_id": 5}, (5,)),
        (2, {"temperature": 0.6}, (2,)),
        (..., {}, ()),
        (None, None, ()),
    ],
)
def test_all_eos_ids_are_found(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: tuple[int, ...]
) -> None:
    """generation_config.json goes before config.json, and each may name one id or several."""
    config = read(tmp_path, in_generation, eos_token_id=in_config)
    assert config.eos_token_ids == expected


def test_qwen3_has_heads_of_128_unless_it_says_otherwise(tmp_path: Path) -> None:
    """Its head_dim does not follow from the hidden size."""
    config = read(tmp_path, architectures=["Qwen3ForCausalLM"])
    assert config.head_dim == 128
    assert config.has_qk_norm


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"sliding_window": 8}, (None, None, None, None)),
        (
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
    ],
)
def test_qwen_windows_are_per_layer(
    tmp_path: Path, keys: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    """By use_sliding_window with max_window_layers, or by layer_types."""
    config = read(tmp_path, architectures=["Qwen2ForCausalLM"], **keys)
    assert config.sliding_windows == expected


def test_a_mistral_window_holds_for_all_layers(tmp_path: Path) -> None:
    """One number, every layer; null means none."""
    mistral = ["MistralForCausalLM"]
    assert read(tmp_path, architectures=mistral, sliding_window=9).sliding_windows == (9,) * 4
    assert read(tmp_path, architectures=mistral, sliding_window=None).sliding_windows == (None,) * 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures", "list"]),
        ({"architectures": ...}, ["lacks the key architectures"]),
        ({"vocab_size": ...}, ["lacks the key vocab_size"]),
        ({"hidden_size": "64"}, ["hidden_size", '"64"', "integer"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "from 1 to"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "integer"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps", "positive"]),
        ({"rms_norm_eps": math.nan}, ["rms_norm_eps", "positive"]),
        ({"rope_theta": math.inf}, ["rope_theta", "positive"]),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 2**31},
            ["sliding_window", "2147483647"],
        ),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "divide"]),
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, ["hidden_size", "multiple"]),
        ({"head_dim": 15}, ["head_dim", "even"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings", "true or false"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "token id"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "unquantised"]),
        ({"sliding_window": 8}, ["sliding_window", "Llama"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling.type", "cache"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["longrope", "llama3", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["lacks the key rope_scaling.factor"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "object"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["per layer type"]),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]},
            ["layer_types", "per layer"],
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["chunked_attention"] * 4},
            ["layer_types", "chunked_attention", "sliding_attention"],
        ),
        (
            {"architectures": ["MistralForCausalLM"], "layer_types": ["sliding_attention"] * 3},
            ["layer_types"],
        ),
    ],
)
def test_what_would_go_wrong_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    """The error names the file, the key and what may stand there."""
    with pytest.raises(ModelError) as caught:
        read(tmp_path, **changes)
    for text in (str(tmp_path / "config.json"), *named):
        assert text in str(caught.value)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Absent, cut off, of another kind or binary: the error names the file."""
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)
