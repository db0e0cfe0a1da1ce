"""Rotary position embeddings: the inverse frequencies of each type and the table of rotations.

Su et al., arXiv 2104.09864. Pairs are (i, i + head_dim / 2), as Hugging Face checkpoints have them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, slots=True)
class Rope:
    """The unscaled form, type "default"; the other types bend its frequencies."""

    theta: float

    @property
    def magnitude(self) -> float:
        """Factor on cos and sin, and so its square on the attention logits."""
        return 1.0

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position of each pair: float32 [head_dim / 2]."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / self.theta**exponents


@dataclass(frozen=True, slots=True)
class LinearRope(Rope):
    """Positions divided by `factor`."""

    factor: float

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        return Rope.inverse_frequencies(self, head_dim) / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Rope(Rope):
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, a smooth band between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        plain = Rope.inverse_frequencies(self, head_dim)
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)  # in the old context
        band = self.high_freq_factor - self.low_freq_factor
        keep = ((turns - self.low_freq_factor) / band).clamp(0.0, 1.0)
        return keep * plain + (1.0 - keep) * plain / self.factor


@dataclass(frozen=True, slots=True)
class YarnRope(Rope):
    """YaRN (arXiv 2309.00071): stretched and plain frequencies, blended by turns per context."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    beta_fast: float
    beta_slow: float
    is_truncated: bool  # the band's ends are rounded outwards to whole pairs

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        plain = Rope.inverse_frequencies(self, head_dim)
        first = self._pair_of_turns(self.beta_fast, head_dim)
        last = self._pair_of_turns(self.beta_slow, head_dim)
        if self.is_truncated:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        width = last - first or 0.001  # a band of no width is a step
        pairs = torch.arange(head_dim // 2, dtype=torch.float32)
        stretch = ((pairs - first) / width).clamp(0.0, 1.0)
        return (1.0 - stretch) * plain + stretch * plain / self.factor

    def _pair_of_turns(self, turns: float, head_dim: int) -> float:
        """The (fractional) pair that makes so many turns within the original context."""
        wavelength = self.original_max_position_embeddings / (2 * math.pi * turns)
        return head_dim * math.log(wavelength) / (2 * math.log(self.theta))

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0


class RotaryTable:
    """Rotations of every position below `max_model_len`, in float32 whatever the model's dtype."""

    def __init__(
        self, rope: Rope, head_dim: int, max_model_len: int, device: torch.device | None = None
    ) -> None:
        """Computed by the CPU, whichever the device: so all have the same."""
        positions = torch.arange(max_model_len, dtype=torch.float32)
        angles = torch.outer(positions, rope.inverse_frequencies(head_dim))
        self.cos = (angles.cos() * rope.magnitude).to(device)  # [max_model_len, head_dim / 2]
        self.sin = (angles.sin() * rope.magnitude).to(device)

    def at(self, positions: torch.Tensor) -> Rotation:
        """The rotations of positions [num_tokens]."""
        return Rotation(self, positions)


@dataclass(frozen=True)
class Rotation:
    """One step's rotations, shared by all layers."""

    table: RotaryTable
    positions: torch.Tensor  # [num_tokens]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rotates x [num_tokens, heads, head_dim]; half the cost of splitting and joining."""
        cos, signed_sin = self._factors
        rotated = torch.addcmul(x * cos, x.float().roll(x.shape[-1] // 2, -1), signed_sin)
        return rotated.to(x.dtype)

    @cached_property
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines, and sines with the first half negated, gathered: [num_tokens, 1, head_dim]."""
        cos = self.table.cos.index_select(0, self.positions).unsqueeze(1)
        sin = self.table.sin.index_select(0, self.positions).unsqueeze(1)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
