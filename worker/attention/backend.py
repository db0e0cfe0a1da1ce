"""The contract between the models and whoever owns the KV cache's physical layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F

from ..batch import Batch
from ..models.rope import Rotation

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


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """The root-mean-square norm of queries and keys that some families have, head by head."""

    weight: torch.Tensor  # [num_heads + num_kv_heads, head_dim]
    eps: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Of queries and keys [num_tokens, num_heads + num_kv_heads, head_dim]."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps).mul_(self.weight)


class AttentionBackend(ABC, Generic[P]):
    """Owns the keys and values of every block. P is what it prepares once per step.

    A row's result depends on its own sequence alone, never on the neighbours in the batch.
    """

    shape: AttentionShape
    block_size: int
    chunk_unit: int  # a sequence that is cut at multiples of it keeps its bits
    null_slot: int  # one that no block has: padding rows write there, nobody reads it

    @abstractmethod
    def prepare(self, batch: Batch) -> P:
        """Whatever all layers of one step share, computed once."""

    @abstractmethod
    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, prepared: P) -> None:
        """Stores the batch's keys and values, both [num_tokens, num_kv_heads, head_dim]."""

    def write_rotated(
        self, layer: int, qkv: torch.Tensor, norm: HeadNorm | None, rotation: Rotation, prepared: P
    ) -> torch.Tensor:
        """What `write` does, from a layer's projections as they come: queries, keys and values
        [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]. Normalises and rotates queries and
        keys; the queries come back, [num_tokens, num_heads, head_dim]."""
        num_heads, num_kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        heads = qkv.view(len(qkv), -1, self.shape.head_dim)
        qk, v = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
        qk = rotation.apply(norm.apply(qk) if norm is not None else qk)
        self.write(layer, qk[:, num_heads:], v, prepared)
        return qk[:, :num_heads]

    @abstractmethod
    def attend(self, layer: int, q: torch.Tensor, prepared: P) -> torch.Tensor:
        """Causal attention of q [num_tokens, num_heads, head_dim]; same shape back.

        The batch's own keys and values must have been written.
        """
