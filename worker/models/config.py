"""What a Hugging Face config.json says of a dense decoder, checked before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..attention.backend import AttentionShape
from .config_section import ConfigSection
from .rope import Rope
from .rope_config import read_rope

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

# Keys that change what the model computes and that no family here has.
_UNSUPPORTED_KEYS = {
    "quantization_config": "quantised weights can't be read; use the unquantised checkpoint",
    "compression_config": "compressed weights can't be read; use the uncompressed checkpoint",
    "attn_logit_softcapping": "capped attention logits are not supported",
    "final_logit_softcapping": "capped logits are not supported",
    "clip_qkv": "clipped queries, keys and values are not supported",
    "embedding_multiplier": "scaled embeddings are not supported",
    "residual_multiplier": "scaled residuals are not supported",
    "attention_multiplier": "another attention scale is not supported",
    "logits_scaling": "scaled logits are not supported",
    "num_local_experts": "mixtures of experts are not supported",
    "num_experts": "mixtures of experts are not supported",
    "use_mrope": "multimodal rotary embeddings are not supported",
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder, whichever family it came from."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    sliding_windows: tuple[int | None, ...]  # per layer
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    has_tied_head: bool
    eos_token_ids: tuple[int, ...]

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_windows=self.sliding_windows,
        )


@dataclass(frozen=True, slots=True)
class _Family:
    """Where the families differ."""

    sliding_windows: tuple[int | None, ...]
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    head_dim: int | None = None  # when the file names none; None: hidden_size / num_heads


def read_config(folder: Path) -> ModelConfig:
    """Reads config.json and generation_config.json; raises ModelError naming file and key."""
    section = ConfigSection.read(folder / CONFIG_FILE)
    family = _read_family(section)
    _refuse_unsupported(section)
    num_heads = section.integer("num_attention_heads")
    return ModelConfig(
        architecture=section.texts("architectures")[0],
        vocab_size=section.integer("vocab_size"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_read_num_kv_heads(section, num_heads),
        head_dim=_read_head_dim(section, family, num_heads),
        max_position_embeddings=section.integer("max_position_embeddings"),
        rms_norm_eps=section.number("rms_norm_eps"),
        rope=read_rope(section),
        sliding_windows=family.sliding_windows,
        has_qkv_bias=family.has_qkv_bias,
        has_output_bias=family.has_output_bias,
        has_mlp_bias=family.has_mlp_bias,
        has_qk_norm=family.has_qk_norm,
        has_tied_head=section.boolean("tie_word_embeddings", False),
        eos_token_ids=_read_eos_token_ids(folder, section),
    )


def _read_family(section: ConfigSection) -> _Family:
    architectures = section.texts("architectures")
    known = ", ".join(_FAMILIES)
    if len(architectures) != 1 or architectures[0] not in _FAMILIES:
        raise section.refusal("architectures", f"not supported; there are {known}")
    return _FAMILIES[architectures[0]](section)


def _refuse_unsupported(section: ConfigSection) -> None:
    for key, reason in _UNSUPPORTED_KEYS.items():
        if section.get(key):
            raise section.refusal(key, reason)
    if section.text("hidden_act", "silu") != "silu":
        raise section.refusal("hidden_act", "only silu is supported")


def _read_num_kv_heads(section: ConfigSection, num_heads: int) -> int:
    num_kv_heads = section.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise section.refusal("num_key_value_heads", f"must divide num_attention_heads {num_heads}")
    return num_kv_heads


def _read_head_dim(section: ConfigSection, family: _Family, num_heads: int) -> int:
    hidden_size = section.integer("hidden_size")
    if "head_dim" not in section and family.head_dim is None and hidden_size % num_heads:
        raise section.refusal("hidden_size", f"must be a multiple of {num_heads} heads")
    head_dim = section.integer("head_dim", family.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise section.refusal("head_dim", "must be even: rotary embeddings turn pairs")
    return head_dim


def _read_eos_token_ids(folder: Path, section: ConfigSection) -> tuple[int, ...]:
    file = folder / GENERATION_CONFIG_FILE
    generation = ConfigSection.read(file).token_ids("eos_token_id") if file.exists() else ()
    return generation or section.token_ids("eos_token_id")


def _llama(section: ConfigSection) -> _Family:
    if "sliding_window" in section:
        raise section.refusal("sliding_window", "Llama models have none; remove the key")
    bias = section.boolean("attention_bias", False)
    return _Family(
        sliding_windows=(None,) * section.integer("num_hidden_layers"),
        has_qkv_bias=bias,
        has_output_bias=bias,
        has_mlp_bias=section.boolean("mlp_bias", False),
    )


def _mistral(section: ConfigSection) -> _Family:
    window = section.optional_integer("sliding_window")
    windows = (window,) * section.integer("num_hidden_layers")
    if "layer_types" in section and _read_layer_windows(section, window) != windows:
        raise section.refusal("layer_types", "all layers of a Mistral model must be of one type")
    return _Family(sliding_windows=windows)


def _qwen2(section: ConfigSection) -> _Family:
    return _Family(sliding_windows=_read_qwen_windows(section), has_qkv_bias=True)


def _qwen3(section: ConfigSection) -> _Family:
    bias = section.boolean("attention_bias", False)
    return _Family(
        sliding_windows=_read_qwen_windows(section),
        has_qkv_bias=bias,
        has_output_bias=bias,
        has_qk_norm=True,
        head_dim=128,
    )


_FAMILIES: dict[str, Callable[[ConfigSection], _Family]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _read_qwen_windows(section: ConfigSection) -> tuple[int | None, ...]:
    is_used = section.boolean("use_sliding_window", False)
    window = section.optional_integer("sliding_window") if is_used else None
    if "layer_types" in section:
        return _read_layer_windows(section, window)
    num_layers = section.integer("num_hidden_layers")
    if window is None:
        return (None,) * num_layers
    num_full = section.integer("max_window_layers", 28, minimum=0)
    return tuple(None if layer < num_full else window for layer in range(num_layers))


def _read_layer_windows(section: ConfigSection, window: int | None) -> tuple[int | None, ...]:
    layer_types = section.texts("layer_types")
    if len(layer_types) != section.integer("num_hidden_layers"):
        raise section.refusal("layer_types", "must have one entry per layer")
    windows = {"full_attention": None, "sliding_attention": window}
    if not windows.keys() >= set(layer_types):
        raise section.refusal("layer_types", f"only {' and '.join(windows)} are supported")
    return tuple(windows[layer_type] for layer_type in layer_types)
