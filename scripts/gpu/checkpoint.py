"""A model's shape as a checkpoint folder: config.json, random weights, and a tokenizer that may be
smaller than the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark import synthetic
from safetensors.torch import save_file

from chairlift.worker.models.checkpoint import INDEX_FILE

from .random_model import EPS, ROPE_THETA, SCALE, architecture_of
from .shapes import ModelShape

MAX_TOKENIZER_SIZE = 4096


def config_fields(model: ModelShape, max_model_len: int) -> dict[str, Any]:
    """As config.json has them."""
    architecture = architecture_of(model)
    return {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": False,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_THETA,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": synthetic.END_OF_TEXT_ID,
    }


def write(
    folder: Path, model: ModelShape, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Makes the numbers on the device, a layer at a time, each with a file of its own; the bytes of
    all."""
    folder.mkdir(parents=True, exist_ok=True)
    synthetic.train_tokenizer(min(MAX_TOKENIZER_SIZE, model.vocab_size - 1)).save(
        str(folder / "tokenizer.json")
    )
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number, tensors in enumerate(_files(model, dtype, device)):
        name = f"model-{number:03}.safetensors"
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    fields = config_fields(model, max_model_len)
    fields["torch_dtype"] = str(dtype).removeprefix("torch.")
    for name, content in {
        "config.json": fields,
        "tokenizer_config.json": synthetic.TOKENIZER_CONFIG,
        INDEX_FILE: {"metadata": {"total_size": num_bytes}, "weight_map": weight_map},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return num_bytes


def _files(
    model: ModelShape, dtype: torch.dtype, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of each file, by name."""

    def normal(rows: int, columns: int, std: float = SCALE) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0, std)

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=dtype, device=device)

    hidden, inner = model.hidden_size, model.intermediate_size
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    yield {
        "model.embed_tokens.weight": normal(model.vocab_size, hidden, 1.0),
        "model.norm.weight": ones(hidden),
        "lm_head.weight": normal(model.vocab_size, hidden),
    }
    for number in range(model.num_layers):
        layer = {
            "input_layernorm": ones(hidden),
            "self_attn.q_proj": normal(q_size, hidden),
            "self_attn.k_proj": normal(kv_size, hidden),
            "self_attn.v_proj": normal(kv_size, hidden),
            "self_attn.o_proj": normal(hidden, q_size),
            "post_attention_layernorm": ones(hidden),
            "mlp.gate_proj": normal(inner, hidden),
            "mlp.up_proj": normal(inner, hidden),
            "mlp.down_proj": normal(hidden, inner),
        }
        if model.has_qk_norm:
            layer |= {
                "self_attn.q_norm": ones(model.head_dim),
                "self_attn.k_norm": ones(model.head_dim),
            }
        yield {f"model.layers.{number}.{name}.weight": x for name, x in layer.items()}
