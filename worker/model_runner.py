"""Runs the model on one step's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .attention.backend import AttentionBackend
from .batch import Batch, make_batch
from .models.decoder import Decoder
from .scheduler import Plan


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step's batch, and what the attention backend computed once for all layers."""

    batch: Batch
    attention: Any


class ModelRunner:
    """Owns the weights and, through the attention backend, the KV cache."""

    def __init__(
        self, decoder: Decoder, attention: AttentionBackend[Any], device: torch.device
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._device = device

    def prepare(self, plan: Plan) -> PreparedStep:
        """Everything that the forward pass reads, laid out."""
        attention = self._attention
        batch = make_batch(plan, attention.block_size, attention.null_slot, self._device)
        return PreparedStep(batch, attention.prepare(batch))

    @torch.inference_mode()
    def run(self, step: PreparedStep) -> torch.Tensor:
        """The forward pass: logits, float32 [num_sampled, vocab_size], in the plan's order."""
        return self._decoder.forward(step.batch, self._attention, step.attention)
