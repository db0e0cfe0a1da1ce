"""The contract between the models and whoever owns the KV cache's physical layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..batch import Batch

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a backend must know of a model."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_windows: tuple[int | None, ...]  # per layer: keys a query may see, itself included


class AttentionBackend(ABC, Generic[P]):
    """Owns the keys and values of every block. P is what it prepares once per step.

    A row's result depends on its own sequence alone, never on the neighbours in the batch.
    """

    block_size: int
    null_slot: int  # one that no block has: padding rows write there, nobody reads it

    @abstractmethod
    def prepare(self, batch: Batch) -> P:
        """Whatever all layers of one step share, computed once."""

    @abstractmethod
    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: P) -> None:
        """Stores the batch's keys and values, both [num_tokens, num_kv_heads, head_dim]."""

    @abstractmethod
    def attend(self, layer: int, q: torch.Tensor, prepared: P) -> torch.Tensor:
        """Causal attention of q [num_tokens, num_heads, head_dim]; same shape back.

        The batch's own keys and values must have been written.
        """
