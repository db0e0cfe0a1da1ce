"""The models whose shapes are measured and compiled for, as their config.json has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

HEADS = ("num_heads", "num_kv_heads", "head_dim")


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """A projection's weight: `out_features` rows of `in_features`."""

    out_features: int
    in_features: int

    @property
    def num_elements(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder's sizes. Query, key and value weights are one matrix, gate and up another."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_qk_norm: bool

    @property
    def qkv(self) -> MatrixShape:
        num_heads = self.num_heads + 2 * self.num_kv_heads
        return MatrixShape(num_heads * self.head_dim, self.hidden_size)

    @property
    def output(self) -> MatrixShape:
        return MatrixShape(self.hidden_size, self.num_heads * self.head_dim)

    @property
    def gate_up(self) -> MatrixShape:
        return MatrixShape(2 * self.intermediate_size, self.hidden_size)

    @property
    def down(self) -> MatrixShape:
        return MatrixShape(self.hidden_size, self.intermediate_size)

    @property
    def head(self) -> MatrixShape:
        return MatrixShape(self.vocab_size, self.hidden_size)

    @property
    def matrices(self) -> dict[str, MatrixShape]:
        """Those of one layer, and the head."""
        names = ("qkv", "output", "gate_up", "down", "head")
        return {name: getattr(self, name) for name in names}

    @property
    def num_layer_elements(self) -> int:
        """Of the matrices of all layers."""
        layer = (self.qkv, self.output, self.gate_up, self.down)
        return self.num_layers * sum(matrix.num_elements for matrix in layer)

    def streamed_bytes(self, dtype: torch.dtype) -> int:
        """What every step reads of the weights: all matrices, and no embedding."""
        return (self.num_layer_elements + self.head.num_elements) * dtype.itemsize

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Of all layers' keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128, 151_936, has_qk_norm=True),
        ModelShape("Llama-3.1-8B", 4096, 14_336, 32, 32, 8, 128, 128_256, has_qk_norm=False),
        ModelShape("Qwen3-8B", 4096, 12_288, 36, 32, 8, 128, 151_936, has_qk_norm=True),
        ModelShape("Qwen3-14B", 5120, 17_408, 40, 40, 8, 128, 151_936, has_qk_norm=True),
    )
}
# Heads that those don't have, for kernels to compile for: groups of 1 and 7, and
# dims of 64, 96 and 256. All else is a model's, so that no kernel of it is compiled again.
OTHERS = {
    name: replace(MODELS["Llama-3.1-8B"], name=name, **dict(zip(HEADS, heads, strict=True)))
    for name, heads in {
        "heads-28/4x128": (28, 4, 128),  # Qwen2.5-7B's
        "heads-14/2x64": (14, 2, 64),  # Qwen2.5-0.5B's
        "heads-32/32x96": (32, 32, 96),  # Phi-3-mini's
        "heads-16/8x256": (16, 8, 256),  # Gemma-2-9B's
    }.items()
}
TINY = ModelShape("tiny", 64, 96, 2, 4, 2, 16, 256, has_qk_norm=True)  # to see that a script runs
