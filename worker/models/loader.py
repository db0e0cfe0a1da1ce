"""From a checkpoint folder to a Decoder that is ready to run."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ...shared.errors import ModelError
from ..attention.backend import HeadNorm
from .checkpoint import Checkpoint
from .config import ModelConfig, read_config
from .decoder import Decoder, DecoderLayer, DecoderWeights
from .linear import Linear, LinearFactory, LinearLayer

SMALL_MODEL_BYTES = 64 << 20  # of weights: what a CPU's caches may hold
MAX_DEFAULT_MODEL_LEN = 8192  # more is served when it is asked for
DtypeChoice = Literal["auto", "float32", "bfloat16"]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory; `dtype` is that of its weights, and so of its keys and values."""

    config: ModelConfig
    decoder: Decoder
    dtype: torch.dtype
    max_model_len: int


def load_model(
    folder: Path,
    dtype: DtypeChoice = "auto",
    max_model_len: int | None = None,
    make_linear: LinearFactory = Linear,
    device: torch.device | None = None,
) -> LoadedModel:
    """Reads config and weights from a local folder.

    Positions reach up to `max_model_len`, by default what the model has up to
    MAX_DEFAULT_MODEL_LEN. `make_linear` makes all matrices but the embedding, where it wants them;
    all else goes to the device, by default the CPU. Raises ModelError, whose text names the file
    and the key or tensor at fault.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a checkpoint's folder or a model's name")
    config = read_config(folder)
    length = _checked_length(max_model_len, config)
    checkpoint = Checkpoint(folder)
    device = device or torch.device("cpu")
    chosen = dtype_of(dtype, checkpoint, device)
    weights = _WeightReader(checkpoint, config, chosen, make_linear, device).read()
    _refuse_unread(checkpoint, config)
    decoder = Decoder(config, weights, length)
    _return_freed_memory()
    return LoadedModel(config, decoder, chosen, length)


def dtype_of(choice: DtypeChoice, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU for a checkpoint of 16 bits, and on a CPU that computes in it for
    a large bfloat16 one.

    Small ones are as fast in float32 there, where an answer stays the same when it is resumed.
    """
    if choice != "auto":
        return torch.float32 if choice == "float32" else torch.bfloat16
    if device.type != "cpu":
        is_half = checkpoint.stored_dtype(_EMBEDDING).itemsize == 2
        return torch.bfloat16 if is_half else torch.float32
    is_large = checkpoint.num_bytes > SMALL_MODEL_BYTES
    is_bfloat16 = checkpoint.stored_dtype(_EMBEDDING) == torch.bfloat16
    return torch.bfloat16 if is_large and is_bfloat16 and has_native_bfloat16() else torch.float32


def has_native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
        is_supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (OSError, AttributeError, RuntimeError):
        return False
    return is_supported and ("avx512_bf16" in flags or "amx_bf16" in flags)


def _checked_length(max_model_len: int | None, config: ModelConfig) -> int:
    if max_model_len is None:
        return min(config.max_position_embeddings, MAX_DEFAULT_MODEL_LEN)
    if not 1 <= max_model_len <= config.max_position_embeddings:
        raise ModelError(
            f"max_model_len {max_model_len} must be between 1 and the model's "
            f"max_position_embeddings, {config.max_position_embeddings}"
        )
    return max_model_len


def _refuse_unread(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """A tensor without a use means that the model computes something we do not."""
    unread = [
        name
        for name in checkpoint.unread()
        if not name.endswith("rotary_emb.inv_freq")  # recomputed from config.json
        and not (name == _HEAD and config.has_tied_head)  # the embedding, stored twice
    ]
    if unread:
        raise ModelError(
            f"{checkpoint.folder} holds tensors that {config.architecture} with this config.json "
            f"has no use for: {', '.join(unread[:5])}{' ...' if len(unread) > 5 else ''}"
        )


def _return_freed_memory() -> None:
    """Gives the holes that unpacked weights left back to the system: 120 MB of a 0.4 B model."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return


@dataclass(frozen=True, slots=True)
class _WeightReader:
    """Reads, fuses and packs; at no time are there two copies of more than one matrix."""

    checkpoint: Checkpoint
    config: ModelConfig
    dtype: torch.dtype
    make_linear: LinearFactory
    device: torch.device

    def read(self) -> DecoderWeights:
        size = (self.config.vocab_size, self.config.hidden_size)
        embedding = self.checkpoint.read(_EMBEDDING, size, self.dtype).to(self.device)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(self.config.num_layers)),
            norm=self._vector("model.norm.weight", self.config.hidden_size),
            head=self.make_linear(self._head(embedding), None),
        )

    def _head(self, embedding: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.has_tied_head:
            return embedding
        return self._stacked({_HEAD: config.vocab_size}, config.hidden_size)

    def _layer(self, index: int) -> DecoderLayer:
        config, layer = self.config, f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        gate_up = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        hidden = config.hidden_size
        return DecoderLayer(
            input_norm=self._vector(f"{layer}.input_layernorm.weight", hidden),
            qkv=self._linear(attention, qkv, hidden, config.has_qkv_bias),
            qk_norm=self._qk_norm(attention) if config.has_qk_norm else None,
            output=self._linear(attention, {"o_proj": hidden}, q_size, config.has_output_bias),
            post_attention_norm=self._vector(f"{layer}.post_attention_layernorm.weight", hidden),
            gate_up=self._linear(mlp, gate_up, hidden, config.has_mlp_bias),
            down=self._linear(
                mlp, {"down_proj": hidden}, config.intermediate_size, config.has_mlp_bias
            ),
        )

    def _linear(
        self, prefix: str, out_features: dict[str, int], in_features: int, has_bias: bool
    ) -> LinearLayer:
        """One layer from projections of the same input, stacked in the order given."""
        weights = {f"{prefix}.{name}.weight": n for name, n in out_features.items()}
        biases = [
            self._vector(f"{prefix}.{name}.bias", n) for name, n in out_features.items() if has_bias
        ]
        weight = self._stacked(weights, in_features)
        return self.make_linear(weight, torch.cat(biases) if has_bias else None)

    def _stacked(self, num_rows: dict[str, int], num_columns: int) -> torch.Tensor:
        """Matrices one above the other. One alone is not copied but mapped: it will be packed."""
        if len(num_rows) == 1:
            ((name, count),) = num_rows.items()
            return self.checkpoint.mapped(name, (count, num_columns)).to(self.dtype)
        stack = torch.empty(sum(num_rows.values()), num_columns, dtype=self.dtype)
        for name, rows in zip(num_rows, torch.split(stack, [*num_rows.values()]), strict=True):
            self.checkpoint.read_into(rows, name)
        return stack

    def _qk_norm(self, attention: str) -> HeadNorm:
        """Both norms as one, for queries and keys are normalised and rotated together."""
        config = self.config
        q = self._vector(f"{attention}.q_norm.weight", config.head_dim)
        k = self._vector(f"{attention}.k_norm.weight", config.head_dim)
        weight = torch.cat((q.expand(config.num_heads, -1), k.expand(config.num_kv_heads, -1)))
        return HeadNorm(weight, config.rms_norm_eps)

    def _vector(self, name: str, size: int) -> torch.Tensor:
        return self.checkpoint.read(name, (size,), self.dtype).to(self.device)
