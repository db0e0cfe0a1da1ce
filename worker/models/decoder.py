"""The forward pass of the dense decoder families over one ragged batch. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

from ..attention.backend import AttentionBackend
from ..batch import Batch
from .activation import silu_and_multiply
from .config import ModelConfig
from .linear import Linear
from .rope import RotaryTable, Rotation

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer."""

    input_norm: torch.Tensor  # [hidden_size]
    qkv: Linear  # queries, keys, values: to (num_heads + 2 * num_kv_heads) * head_dim
    qk_norm: torch.Tensor | None  # [num_heads + num_kv_heads, head_dim]
    output: Linear
    post_attention_norm: torch.Tensor  # [hidden_size]
    gate_up: Linear  # gates, then ups: to 2 * intermediate_size
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything that was read from the checkpoint."""

    embedding: torch.Tensor  # [vocab_size, hidden_size]
    layers: tuple[DecoderLayer, ...]
    norm: torch.Tensor  # [hidden_size]
    head: Linear  # to vocab_size


class Decoder:
    """Llama, Mistral, Qwen2 and Qwen3: they differ in what ModelConfig and the weights hold.

    Keeps no state between steps; keys and values live in the attention backend.
    """

    def __init__(self, config: ModelConfig, weights: DecoderWeights, max_model_len: int) -> None:
        self.config = config
        self.weights = weights
        self._rotary = RotaryTable(config.rope, config.head_dim, max_model_len, weights.embedding)

    def forward(self, batch: Batch, attention: AttentionBackend[P], prepared: P) -> torch.Tensor:
        """The last layer's hidden states, [num_tokens, hidden_size]: see `logits` and `normed`.

        Stores the batch's keys and values; `prepared` is `attention.prepare(batch)`.
        """
        rotation = self._rotary.at(batch.positions)
        x = F.embedding(batch.input_ids, self.weights.embedding)  # [num_tokens, hidden_size]
        for index, layer in enumerate(self.weights.layers):
            q, k, v = self._project(layer, self._norm(x, layer.input_norm), rotation)
            attention.write(index, k, v, prepared)
            attended = attention.attend(index, q, prepared)  # [num_tokens, num_heads, head_dim]
            x = x + layer.output(attended.flatten(1))
            gate_up = layer.gate_up(self._norm(x, layer.post_attention_norm))
            x = x + layer.down(silu_and_multiply(gate_up))
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the tokens after these, float32 [num_rows, vocab_size]."""
        if len(hidden) == 0:  # prompts that go on in the next step
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.weights.head(self._norm(hidden, self.weights.norm)).float()

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of these tokens, float32 [num_rows, hidden_size]."""
        return self._norm(hidden, self.weights.norm).float()

    def _project(
        self, layer: DecoderLayer, x: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of x, each [num_tokens, its heads, head_dim]."""
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        heads = layer.qkv(x).view(len(x), -1, self.config.head_dim)
        qk = heads[:, : num_heads + num_kv_heads]
        if layer.qk_norm is not None:
            qk = self._norm(qk, layer.qk_norm)
        qk = rotation.apply(qk)
        return qk[:, :num_heads], qk[:, num_heads:], heads[:, num_heads + num_kv_heads :]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm (Zhang and Sennrich, arXiv 1910.07467) of the last dimension."""
        return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps).mul_(weight)
