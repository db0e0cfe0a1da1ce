"""Runs the model on one step's plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import Batch, make_batch
from .kernels.choice import Kernels
from .models.decoder import Decoder
from .models.native_layers import layers_of
from .scheduler import Plan, ScheduledSequence
from .scoring import SLICE_ROWS, score

PADDED_ROWS = 4
NUM_TRIALS = 3


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step's batch, and what the attention backend computed once for all layers."""

    plan: Plan
    batch: Batch
    attention: Any


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the forward pass yields. The maps have only entries of the plan that want such."""

    logits: torch.Tensor  # float32 [num_logit_rows, vocab_size], in the plan's order
    scores: dict[int, list[bytes]] = field(default_factory=dict)  # by number of the entry
    hidden: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # to pool, by the same


class ModelRunner:
    """Owns the weights and, through the attention backend, the KV cache."""

    def __init__(self, decoder: Decoder, kernels: Kernels, device: torch.device) -> None:
        self._decoder = decoder
        self._attention = kernels.attention
        self._layers = layers_of(decoder, kernels)
        self._device = device
        self._min_rows = 1

    @property
    def null_block(self) -> int:
        """Nobody's: what is written there is never read for an answer."""
        return self._attention.null_slot // self._attention.block_size

    @property
    def max_model_len(self) -> int:
        return self._decoder.max_model_len

    def tune(self, tiny: Plan, clock: Callable[[], float], max_s: float) -> None:
        """Pads tiny batches from now on if that makes the plan, which is one, faster; not where
        finding out would take longer than `max_s`, nor where our own products gain nothing by it.

        oneDNN may take a slower kernel for one to three rows than for four: all products of a 0.4 B
        model took a 2-core Zen 4 29.5, 32.8 and 25.3 ms at 1, 2 and 4 rows in bfloat16, and 54.7,
        65.7 and 38.3 ms in float32.
        """
        if not self._layers.gains_by_padding:
            return
        started = clock()
        self.run(self.prepare(tiny))
        if (clock() - started) * 2 * (NUM_TRIALS + 1) > max_s:
            return
        seconds = {}
        for min_rows in (1, PADDED_ROWS):
            self._min_rows = min_rows
            self.run(self.prepare(tiny))
            started = clock()
            for _ in range(NUM_TRIALS):
                self.run(self.prepare(tiny))
            seconds[min_rows] = clock() - started
        self._min_rows = min(seconds, key=seconds.__getitem__)

    def prepare(self, plan: Plan) -> PreparedStep:
        """Everything that the forward pass reads, laid out."""
        attention = self._attention
        batch = make_batch(
            plan, attention.block_size, attention.null_slot, self._device, self._min_rows
        )
        return PreparedStep(plan, batch, attention.prepare(batch))

    @torch.inference_mode()
    def run(self, step: PreparedStep) -> StepOutput:
        """The forward pass, and what the plan's sequences want to know of it."""
        decoder = self._decoder
        hidden = decoder.forward(step.batch, self._layers, step.attention)
        logits = decoder.logits(hidden.index_select(0, step.batch.logit_rows))
        output = StepOutput(logits.cpu())
        for number, (entry, segment) in enumerate(
            zip(step.plan.entries, step.batch.segments, strict=True)
        ):
            own = hidden[segment.start : segment.start + segment.num_rows]
            if entry.to_score:
                output.scores[number] = scores_of(decoder, own, entry)
            if entry.sequence.pool is not None:
                output.hidden[number] = own.float().cpu().numpy()
        return output


def scores_of(decoder: Decoder, hidden: torch.Tensor, entry: ScheduledSequence) -> list[bytes]:
    """Records of the entry's tokens `to_score`, each predicted at the position before it, from what
    the model made of the entry's rows [num_rows, hidden_size]."""
    sequence, indices = entry.sequence, entry.to_score
    offset = 1 + entry.first
    records = []
    for start in range(0, len(indices), SLICE_ROWS):
        part = indices[start : start + SLICE_ROWS]
        logits = decoder.logits(hidden[part[0] - offset : part[-1] + 1 - offset]).cpu()
        for row, index in zip(logits, part, strict=True):
            records.append(score(row, sequence.token_ids[index], sequence.scores.num_top(index)))
    return records
