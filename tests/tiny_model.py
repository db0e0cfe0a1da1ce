"""A checkpoint small enough for every test, written without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE, HIDDEN, FEED_FORWARD, NUM_LAYERS, NUM_HEADS = 512, 64, 96, 2, 4
MAX_MODEL_LEN = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def make_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    chat_template: str = CHAT_TEMPLATE,
    added_tokens: Sequence[AddedToken] = (),
    max_model_len: int = MAX_MODEL_LEN,
) -> Path:
    """A random Llama whose logits are spread widely, with a byte-level tokenizer."""
    torch.manual_seed(seed)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(), folder / "model.safetensors")
    _tokenizer(added_tokens).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": chat_template, "eos_token": SPECIAL_TOKENS[0]})
    )
    return folder


def _weights() -> dict[str, torch.Tensor]:
    shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(NUM_LAYERS):
        layer = f"model.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    return {
        name: torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape) * 0.15
        for name, shape in shapes.items()
    }


def _tokenizer(added_tokens: Sequence[AddedToken]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
    )
    corpus = [f"{a}{b} {b}{a}{a}" for a in "abcdefghijklmnop" for b in "aeiou0123456789"]
    tokenizer.train_from_iterator(corpus * 2, trainer)
    tokenizer.add_tokens(list(added_tokens))
    missing = VOCAB_SIZE - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"word{i}" for i in range(missing)])
    return tokenizer
