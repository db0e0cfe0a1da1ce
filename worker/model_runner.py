"""Runs the model on one step's plan."""

from __future__ import annotations

from typing import Any

import torch

from .attention.backend import AttentionBackend
from .batch import make_batch
from .models.decoder import Decoder
from .scheduler import Plan


class ModelRunner:
    """Owns the weights and, through the attention backend, the KV cache."""

    def __init__(
        self, decoder: Decoder, attention: AttentionBackend[Any], device: torch.device
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._device = device

    @torch.inference_mode()
    def run(self, plan: Plan) -> torch.Tensor:
        """Logits, float32 [num_sampled, vocab_size], of the entries that are sampled, in order."""
        batch = make_batch(
            plan, self._attention.block_size, self._attention.null_slot, self._device
        )
        return self._decoder.forward(batch, self._attention, self._attention.plan(batch))
