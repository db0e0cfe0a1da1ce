"""What a step has to read and to compute, whoever does it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from chairlift.worker.scheduler import Plan

from .roofline import Roofline
from .shapes import ModelShape


@dataclass(frozen=True, slots=True)
class StepWork:
    """Of one plan, in numbers that no model has a part in."""

    num_rows: int
    num_sampled: int
    num_context_tokens: int  # whose keys and values are read: each sequence's own once
    num_pairs: int  # of a row and a key that it attends to

    @classmethod
    def of(cls, plan: Plan) -> StepWork:
        spans = [(entry.first, entry.num_rows) for entry in plan.entries]
        return cls(
            num_rows=sum(count for _, count in spans),
            num_sampled=sum(entry.num_sampled for entry in plan.entries),
            num_context_tokens=sum(first + count for first, count in spans),
            num_pairs=sum(first * count + count * (count + 1) // 2 for first, count in spans),
        )

    def num_bytes(self, model: ModelShape, dtype: torch.dtype) -> int:
        """All weights once, the head only where something is sampled; keys and values."""
        unread = 0 if self.num_sampled else model.head.num_elements * dtype.itemsize
        kv_bytes = self.num_context_tokens * model.kv_bytes_per_token(dtype)
        return model.streamed_bytes(dtype) - unread + kv_bytes

    def num_flops(self, model: ModelShape) -> int:
        """Of matrices and attention."""
        pair = 4 * model.num_layers * model.num_heads * model.head_dim
        head = 2 * model.head.num_elements
        rows = 2 * model.num_layer_elements * self.num_rows
        return rows + head * self.num_sampled + pair * self.num_pairs

    def seconds(self, model: ModelShape, dtype: torch.dtype, ceiling: Roofline) -> float:
        """The least that a device with this roofline takes."""
        return ceiling.seconds(self.num_bytes(model, dtype), self.num_flops(model))


def total_seconds(
    works: Iterable[StepWork], model: ModelShape, dtype: torch.dtype, ceiling: Roofline
) -> float:
    """One step after another, with nothing between them."""
    return sum(work.seconds(model, dtype, ceiling) for work in works)
