"""What a step launches, from the host's few numbers to sampled tokens. Knows no request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from ..batch import Batch
from ..kernels.choice import Kernels
from ..models.decoder import Decoder, PlainLayers
from .attention import TritonAttention
from .inputs import InputPreparation, RequestTables
from .packet import SentStep
from .sampling import GpuSampler, SampledRows


@dataclass(frozen=True, slots=True)
class StepSize:
    """All of a step that is fixed when its launches are captured."""

    num_rows: int  # those of the sequences, and padding
    num_logit_rows: int  # as many sequences may sample
    has_chunks: bool  # without, each sequence has one row


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Those that a worker's steps have."""

    max_num_seqs: int
    max_num_rows: int
    least_rows: int = 1
    has_decodes: bool = True  # a kernel of their own; without, they are chunks like any

    def of(self, num_rows: int, *, has_chunks: bool) -> StepSize:
        """The least that holds so many rows: padding is less than a quarter of them."""
        wanted = max(num_rows, self.least_rows)
        unit = max(1, (1 << (wanted - 1).bit_length()) // 8)
        rounded = -(-wanted // unit) * unit
        count = min(rounded, self.max_num_seqs)
        return StepSize(rounded, count, has_chunks or not self.has_decodes)

    def all(self) -> list[StepSize]:
        """Each once: two that launch every kernel, decodes that are likely, then the others."""
        first = [(1, False), (self.max_num_rows, True), (8, False), (32, False)]
        every = product(range(1, self.max_num_rows + 1), (False, True))
        return [
            *dict.fromkeys(
                self.of(num_rows, has_chunks=has_chunks)
                for num_rows, has_chunks in [*first, *every]
                if has_chunks or num_rows <= self.max_num_seqs
            )
        ]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What comes of a step, on the device."""

    hidden: torch.Tensor  # [num_rows, hidden_size]
    logits: torch.Tensor  # [num_logit_rows, vocab_size], of each sequence's last row
    chosen: SampledRows


class DeviceStep:
    """Launches one step after another, whose tokens the next one finds in the tables. Reads nothing
    on the host, and so can be captured."""

    def __init__(
        self,
        decoder: Decoder,
        kernels: Kernels,
        sampler: GpuSampler,
        tables: RequestTables,
        sent: SentStep,
    ) -> None:
        """`sent` is where each step's numbers are, before it is launched."""
        assert isinstance(kernels.attention, TritonAttention)
        self._decoder, self._attention = decoder, kernels.attention
        self._layers = PlainLayers(decoder, kernels)
        self._sampler, self._sent = sampler, sent
        attention = self._attention
        self._inputs = InputPreparation(tables, attention.block_size, attention.null_slot)
        self._no_drafts = torch.zeros_like(sent.is_sampled)

    @torch.inference_mode()
    def launch(self, size: StepSize) -> StepTensors:
        sent, count = self._sent, size.num_logit_rows
        inputs = self._inputs.expand(sent.arrays, size.num_rows)
        prepared = self._attention.prepare_paged(inputs.batch, inputs.positions, size.has_chunks)
        batch = Batch(inputs.input_ids, inputs.positions, inputs.batch.slots, inputs.last_rows, ())
        hidden = self._decoder.forward(batch, self._layers, prepared)
        logits = self._decoder.weights.head(hidden.index_select(0, inputs.last_rows[:count]))
        table_rows, no_drafts = sent.arrays.table_rows[:count], self._no_drafts[:count]
        chosen = self._sampler.sample(logits, sent.num_sampled, table_rows, no_drafts)
        self._sampler.advance(sent.num_sampled, table_rows)
        self._inputs.scatter(chosen.token_ids, sent.is_sampled, inputs.batch)
        return StepTensors(hidden, logits, chosen)
