"""Tiny checkpoints with random weights, one per family and variant, made by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 160
MAX_LENGTH = 256


def _common(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.15,  # wide: nearly uniform logits would hide mistakes
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        **changes,
    }


def _llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_common(**changes)))


def _mistral(**changes: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_common(**changes)))


def _qwen2(**changes: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_common(**changes)))


def _qwen3(**changes: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_common(head_dim=32, **changes)))


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama_mha_tied": lambda: _llama(num_key_value_heads=4, tie_word_embeddings=True),
    "llama_biased": lambda: _llama(attention_bias=True, mlp_bias=True),
    "llama_llama3_rope": lambda: _llama(rope_parameters=_LLAMA3_ROPE),
    "llama_linear_rope": lambda: _llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "llama_yarn_rope": lambda: _llama(rope_parameters=_YARN_ROPE),
    "llama_yarn_rope_mscale": lambda: _llama(
        rope_parameters={**_YARN_ROPE, "mscale": 0.8, "mscale_all_dim": 1.2, "truncate": False}
    ),
    "mistral": lambda: _mistral(sliding_window=None, head_dim=32),
    "mistral_window": lambda: _mistral(sliding_window=19),
    "qwen2": lambda: _qwen2(tie_word_embeddings=True),
    "qwen2_window": lambda: _qwen2(use_sliding_window=True, sliding_window=23, max_window_layers=1),
    "qwen3": lambda: _qwen3(tie_word_embeddings=True),
    "qwen3_biased": lambda: _qwen3(attention_bias=True, rope_parameters={"rope_theta": 1e6}),
}


def make_model(variant: str) -> PreTrainedModel:
    """The variant's model with the same random weights every time, float32, eager attention."""
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = VARIANTS[variant]()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # initialised to 0 and 1: would not show
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.set_attn_implementation("eager")
    return model


def make_checkpoint(
    variant: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "50MB",
) -> PreTrainedModel:
    """Saves the variant's model into the folder and returns it, with weights as they were saved."""
    model: Any = make_model(variant)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    as_saved: PreTrainedModel = model.float()
    return as_saved
