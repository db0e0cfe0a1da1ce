"""Runs steps on a GPU that is one ahead of the host: the next begins with tokens that the host has
yet to hear of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from ...shared.errors import ModelError
from ..executor import Choice, Computed, Executor, Flight
from ..kernels.choice import Kernels
from ..model_runner import scores_of
from ..models.decoder import Decoder
from ..pace import Pace
from ..sampler import LogitRow, Sampler
from ..scheduler import Plan, ScheduledSequence
from ..scoring import score
from ..sequence import Sequence
from ..step_times import StepTimes
from .attention import TritonAttention
from .device_step import DeviceStep, StepSizes, StepTensors
from .graphs import StepGraphs
from .inputs import RequestTables
from .linear import LEAST_ROWS
from .packet import Packets, RowOfStep, Update
from .rows import Row, Rows
from .sampling import GpuSampler
from .sampling_state import SamplingState, packed
from .sampling_variants import SamplingShape
from .transfers import Arriving, Transfers

DEPTH = 1

log = structlog.get_logger(__name__)


class GpuExecutor(Executor):
    """Owns the device's tables of requests, and says what is launched in a step. Waits for nothing:
    a flight does, when it is asked for its results.

    A token that the worker's own code has to choose (a grammar's, after bad_words, where an
    operator has processors) is sampled on the host, of logits that come with the results.
    """

    def __init__(self, decoder: Decoder, kernels: Kernels, sampler: Sampler) -> None:
        attention = kernels.attention
        assert isinstance(attention, TritonAttention)
        limits, device = attention.limits, decoder.device
        self.depth = 0 if sampler.has_processors else DEPTH
        self.sizes = StepSizes(
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            LEAST_ROWS if decoder.is_row_independent else 1,
            has_decodes=attention.variants.decode_rows > 0,
        )
        self._decoder = decoder
        self._host_sampler = sampler
        num_tables = (1 + DEPTH) * limits.max_num_seqs  # some have ended, and are in flight yet
        if num_tables * limits.max_model_len > np.iinfo(np.int32).max:  # places in a flat table
            raise ModelError(
                f"{limits.max_num_seqs} sequences of {limits.max_model_len} tokens are more than a "
                "GPU's tables hold: lower --max-num-seqs or --max-model-len"
            )
        max_blocks = -(-limits.max_model_len // attention.block_size)
        new = partial(torch.zeros, num_tables, dtype=torch.int32, device=device)
        self._tables = tables = RequestTables(new(limits.max_model_len), new(max_blocks))
        self._updates: list[Update] = []  # that go with the next step
        self._rows = Rows(num_tables)
        self._transfers = Transfers(device)
        self._packets = Packets(limits.max_num_seqs, self._transfers, device)
        state = SamplingState.empty(num_tables, decoder.config.vocab_size, device)
        shape = SamplingShape(decoder.config.vocab_size)
        dtype = decoder.weights.norm.dtype
        self._sampler = GpuSampler(shape, limits.max_num_seqs, state, dtype)
        self._step = DeviceStep(decoder, kernels, self._sampler, tables, self._packets.sent)
        self._graphs = StepGraphs(self._step, device, self.sizes.all())

    @torch.inference_mode()
    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        try:
            return self._launch(plan, times)
        except Exception:  # what of it has reached the device is not known
            self._updates = []
            for entry in plan.entries:
                self._rows.forget(entry.sequence)
            raise

    def _launch(self, plan: Plan, times: StepTimes) -> Flight:
        started = times.clock()
        order = _Order.of(plan, self._is_sampled_here)
        sampled = self._send(order)[: order.num_sampled]
        tensors = self._compute(order, plan.num_rows)
        for row, entry in zip(sampled, order.entries, strict=False):
            row.num_known_tokens = entry.span.stop + 1
        flight = self._collect(order, tensors)
        times.schedule_s += times.clock() - started
        return flight

    def _send(self, order: _Order) -> list[Row]:
        """The step, and what is new of the sequences; their rows."""
        self._rows.sweep()
        rows = [self._row_of(entry.sequence) for entry in order.entries]
        parts = []
        for row, entry in zip(rows, order.entries, strict=True):
            self._updates += row.updates_for(entry, self._tables)
            parts.append(RowOfStep(row.number, entry.first, entry.num_rows))
        self._packets.send(parts, order.num_sampled, self._updates)
        self._updates = []
        return rows

    def _compute(self, order: _Order, num_rows: int) -> StepTensors:
        size = self.sizes.of(num_rows, has_chunks=any(e.num_rows > 1 for e in order.entries))
        # What is read of each row comes with the results, when a graph's may have been overwritten.
        is_alone = any(entry.to_score or entry.sequence.pool for entry in order.entries)
        return self._step.launch(size) if is_alone else self._graphs.launch(size)

    def _collect(self, order: _Order, tensors: StepTensors) -> GpuFlight:
        """Begins to fetch tokens, and the logits of those that need them."""
        wanted = [n for n, entry in enumerate(order.entries) if self._needs_logits(entry)]
        chosen, count = tensors.chosen, order.num_sampled
        tokens = torch.stack((chosen.token_ids[:count], chosen.is_number[:count]))
        arriving = self._transfers.to_host(tokens, self._logits_of(wanted, tensors.logits))
        return GpuFlight(self._decoder, self._host_sampler, order, tensors.hidden, wanted, arriving)

    def check(self) -> None:
        """An error of the device, unlike one of a launch, is there for as long as the process."""
        self._transfers.wait()

    @torch.inference_mode()
    def warm_up(self, max_num_seqs: int, pace: Pace | None, max_s: float) -> None:
        """Compiles all kernels, by the first sizes of steps, and captures as many of the others as
        there is time for."""
        deadline = time.perf_counter() + max_s
        anything = Update(self._tables.token_table, 0, 0, [0])  # until somebody takes the row
        self._packets.send([], 0, [anything])
        self._sampler.start(0, self._transfers.to_device(np.zeros(1, dtype=np.int32)), 1)
        self.idle()  # the first two sizes have every kernel
        while self.idle() and time.perf_counter() <= deadline:
            pass

    @torch.inference_mode()
    def idle(self) -> bool:
        """Captures one more of the sizes that steps may have."""
        size = self._graphs.next_expected()
        if size is None:
            return False
        self._packets.send([], 0, [])
        try:
            for _ in range(2):
                self._graphs.launch(size)
        except torch.OutOfMemoryError:
            log.warning("no memory for a step as large as there may be", num_rows=size.num_rows)
        return True

    def _logits_of(self, entries: list[int], logits: torch.Tensor) -> torch.Tensor:
        """float32 [len(entries), vocab_size]. An index made of a list would wait for the step."""
        if not entries:
            return logits.new_empty(0, logits.shape[1], dtype=torch.float32)
        rows = self._transfers.to_device(np.array(entries, dtype=np.int32))
        return logits.index_select(0, rows).float()

    def _row_of(self, sequence: Sequence) -> Row:
        """Its own, or one whose new owner the device is told of: what its tokens are sampled by."""
        row = self._rows.find(sequence)
        if row is not None:
            return row
        row, params = self._rows.take(sequence), sequence.params
        ends, index = self._host_sampler.eos_token_ids, sequence.num_output_tokens
        self._updates += self._sampler.state.updates(row.number, packed(params, index, ends))
        if params.has_penalties:
            tokens = self._transfers.to_device(np.array(sequence.token_ids, dtype=np.int32))
            self._sampler.start(row.number, tokens, sequence.num_prompt_tokens)
        return row

    def _is_sampled_here(self, entry: ScheduledSequence) -> bool:
        is_plain = not entry.sequence.reads_its_tokens and not self._host_sampler.has_processors
        return entry.is_sampled and is_plain

    def _needs_logits(self, entry: ScheduledSequence) -> bool:
        return entry.is_sampled and (entry.sequence.wants_score or not self._is_sampled_here(entry))


@dataclass(frozen=True, slots=True)
class _Order:
    """A plan's entries as the device has them: those first that it samples of."""

    entries: list[ScheduledSequence]
    places: list[int]  # of the plan's entries among these
    num_sampled: int

    @classmethod
    def of(cls, plan: Plan, is_sampled_here: Callable[[ScheduledSequence], bool]) -> _Order:
        numbers = range(len(plan.entries))
        is_here = [is_sampled_here(entry) for entry in plan.entries]
        order = sorted(numbers, key=lambda number: not is_here[number])
        places = sorted(numbers, key=order.__getitem__)
        return cls([plan.entries[n] for n in order], places, sum(is_here))


@dataclass(frozen=True, slots=True)
class GpuFlight:
    """A step on the device, and what comes of it."""

    decoder: Decoder
    sampler: Sampler  # the host's
    order: _Order
    hidden: torch.Tensor  # [num_rows, hidden_size]
    wanted: list[int]  # entries whose logits come with the tokens
    arriving: Arriving  # tokens and whether they are numbers, then logits

    @torch.inference_mode()
    def results(self) -> list[Computed]:
        chosen, logits = self.arriving.wait()
        found = zip(*chosen.tolist(), strict=True)
        tokens = [token_id if is_one else None for token_id, is_one in found]
        kept = dict(zip(self.wanted, logits, strict=True))
        starts = accumulate((entry.num_rows for entry in self.order.entries), initial=0)
        computed = []
        for number, (entry, start) in enumerate(zip(self.order.entries, starts, strict=False)):
            own = tokens[number : number + 1] if number < self.order.num_sampled else []
            try:
                computed.append(self._computed(entry, own, kept.get(number), start))
            except Exception as error:  # no memory, say: the others have theirs
                computed.append(Computed(error=error))
        return [computed[place] for place in self.order.places]

    def _computed(
        self,
        entry: ScheduledSequence,
        own: list[int | None],
        logits: torch.Tensor | None,
        start: int,
    ) -> Computed:
        """Of the entry whose rows begin at `start`; `own` is the token that the device chose, if
        that was asked to."""
        choices = tuple(_choice(entry, token, logits) for token in own)
        if entry.is_sampled and not own:
            assert logits is not None
            choices = (self._choose(entry, logits),)
        return Computed(choices, *self._of_rows(entry, start))

    def _of_rows(
        self, entry: ScheduledSequence, start: int
    ) -> tuple[tuple[bytes, ...], NDArray[np.float32] | None]:
        """Scores of its prompt's tokens, and hidden states to pool, where they are wanted."""
        sequence = entry.sequence
        if not entry.to_score and sequence.pool is None:
            return (), None
        own = self.hidden[start : start + entry.num_rows]
        scores = tuple(scores_of(self.decoder, own, entry)) if entry.to_score else ()
        return scores, own.float().cpu().numpy() if sequence.pool is not None else None

    def _choose(self, entry: ScheduledSequence, logits: torch.Tensor) -> Choice:
        """On the host; the sampler writes over the logits."""
        (token,) = self.sampler.sample(logits.clone()[None], [LogitRow(entry.sequence)])
        return _choice(entry, token, logits)


def _choice(
    entry: ScheduledSequence, token: int | BaseException | None, logits: torch.Tensor | None
) -> Choice:
    if logits is None or not isinstance(token, int) or not entry.sequence.wants_score:
        return Choice(token)
    return Choice(token, score(logits, token, entry.sequence.params.num_logprobs))
