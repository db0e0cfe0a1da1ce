"""The forward pass of the dense decoder families over one ragged batch. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..attention.backend import HeadNorm
from ..batch import Batch
from ..kernels.choice import Kernels
from .config import ModelConfig
from .linear import LinearLayer
from .rope import RotaryTable, Rotation


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer."""

    input_norm: torch.Tensor  # [hidden_size]
    qkv: LinearLayer  # queries, keys, values: to (num_heads + 2 * num_kv_heads) * head_dim
    qk_norm: HeadNorm | None
    output: LinearLayer
    post_attention_norm: torch.Tensor  # [hidden_size]
    gate_up: LinearLayer  # gates, then ups: to 2 * intermediate_size
    down: LinearLayer


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Everything that was read from the checkpoint."""

    embedding: torch.Tensor  # [vocab_size, hidden_size]
    layers: tuple[DecoderLayer, ...]
    norm: torch.Tensor  # [hidden_size]
    head: LinearLayer  # to vocab_size


class Layers(Protocol):
    """All layers of a decoder, with the kernels and the KV cache that they compute with."""

    gains_by_padding: bool  # whether a few rows more may take less time: with oneDNN's products

    def run(self, x: torch.Tensor, rotation: Rotation, prepared: Any) -> torch.Tensor:
        """Takes x [num_tokens, hidden_size], which may change, through all layers; normed at the
        end. `prepared` is the attention's, of the step."""
        ...


class PlainLayers:
    """Layers of any kernels."""

    gains_by_padding = True

    def __init__(self, decoder: Decoder, kernels: Kernels) -> None:
        self._eps = decoder.config.rms_norm_eps
        self._weights = decoder.weights
        self._kernels = kernels

    def run(self, x: torch.Tensor, rotation: Rotation, prepared: Any) -> torch.Tensor:
        attention, operations = self._kernels.attention, self._kernels.operations
        delta = None  # what the last part of a layer adds to x
        for index, layer in enumerate(self._weights.layers):
            normed = operations.add_and_norm(x, delta, layer.input_norm, self._eps)
            qkv = layer.qkv(normed)
            q = attention.write_rotated(index, qkv, layer.qk_norm, rotation, prepared)
            attended = attention.attend(index, q, prepared)  # [num_tokens, num_heads, head_dim]
            delta = layer.output(attended.flatten(1))
            normed = operations.add_and_norm(x, delta, layer.post_attention_norm, self._eps)
            delta = layer.down(operations.silu_and_multiply(layer.gate_up(normed)))
        return operations.add_and_norm(x, delta, self._weights.norm, self._eps)


class Decoder:
    """Llama, Mistral, Qwen2 and Qwen3: they differ in what ModelConfig and the weights hold.

    Keeps no state between steps; keys and values live in the attention backend.
    """

    def __init__(self, config: ModelConfig, weights: DecoderWeights, max_model_len: int) -> None:
        self.config = config
        self.weights = weights
        self.max_model_len = max_model_len
        self.rotary = RotaryTable(config.rope, config.head_dim, max_model_len, self.device)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weights.norm.device

    @property
    def products(self) -> list[LinearLayer]:
        """All that it multiplies by, the head first."""
        layers = ((x.qkv, x.output, x.gate_up, x.down) for x in self.weights.layers)
        return [self.weights.head, *chain.from_iterable(layers)]

    @property
    def is_row_independent(self) -> bool:
        """Whether a row's products have the same bits in any company."""
        return all(layer.is_row_independent for layer in self.products)

    def forward(self, batch: Batch, layers: Layers, prepared: Any) -> torch.Tensor:
        """What the model makes of the batch's tokens, [num_tokens, hidden_size], normed.

        Stores their keys and values; `prepared` is the attention's, of the batch.
        """
        x = F.embedding(batch.input_ids, self.weights.embedding)  # [num_tokens, hidden_size]
        return layers.run(x, self.rotary.at(batch.positions), prepared)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the tokens after these [num_rows, hidden_size]: float32 [num_rows, vocab_size]."""
        if len(hidden) == 0:  # prompts that go on in the next step
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.weights.head(hidden).float()
