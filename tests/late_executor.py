"""A device that the host hears of late: it goes on with tokens that it has not told yet."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chairlift.worker.executor import Computed, Flight, HostExecutor
from chairlift.worker.model_runner import ModelRunner
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.sequence import Sequence
from chairlift.worker.step_times import StepTimes
from tests.fake_model import FakeModelRunner


class LateExecutor(HostExecutor):
    """Has a shadow of each sequence, with what it has sampled: as a GPU has its rows. Each step is
    computed of what the host said when it was launched, and told when it is asked for."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, depth: int, block_size: int) -> None:
        super().__init__(runner, sampler)
        self.depth = depth
        self._block_size = block_size
        self.in_flight: list[LateFlight] = []
        self._pending: dict[Sequence, list[int]] = {}

    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        error = self.runner.error_in(plan) if isinstance(self.runner, FakeModelRunner) else None
        if error is not None:
            raise error
        shadows = [self._shadow(entry) for entry in plan.entries]
        flight = super().launch(replace(plan, entries=tuple(shadows)), times)
        for entry, computed in zip(plan.entries, flight.results(), strict=True):
            if entry.is_sampled:
                token_id = computed.choices[0].token_id
                token_id = token_id if isinstance(token_id, int) else 0  # whatever: it has failed
                self._pending.setdefault(entry.sequence, []).append(token_id)
        late = LateFlight(self, plan, shadows, flight.results())
        self._check_blocks(late)
        self.in_flight.append(late)
        return late

    def _check_blocks(self, new: LateFlight) -> None:
        """Nobody writes to a block that another sequence has in flight."""
        for entry in new.shadows:
            rows = range(entry.first, entry.first + entry.num_rows)
            written = {entry.sequence.block_table[row // self._block_size] for row in rows}
            for other in (other for flight in self.in_flight for other in flight.shadows):
                if other.sequence.request_id != entry.sequence.request_id:
                    assert not written & set(other.sequence.block_table)

    def told(self, flight: LateFlight) -> None:
        assert self.in_flight.pop(0) is flight, "asked out of order"
        for entry in flight.plan.entries:
            if entry.is_sampled:
                del self._pending[entry.sequence][0]

    def _shadow(self, entry: ScheduledSequence) -> ScheduledSequence:
        """The entry with its sequence as the device has it."""
        sequence = entry.sequence
        pending = self._pending.get(sequence, [])
        assert len(pending) == sequence.num_pending_tokens
        shadow = Sequence(sequence.request_id, sequence.token_ids, sequence.params)
        shadow.num_prompt_tokens = sequence.num_prompt_tokens
        shadow.output_counts = sequence.output_counts.copy()
        shadow.constraint, shadow.scores = sequence.constraint, sequence.scores
        shadow.pool = sequence.pool
        shadow.num_computed_tokens = sequence.num_computed_tokens
        shadow.block_table = list(sequence.block_table)
        for token_id in pending:
            shadow.append(token_id)
        return replace(entry, sequence=shadow)


@dataclass(eq=False)
class LateFlight:
    executor: LateExecutor
    plan: Plan
    shadows: list[ScheduledSequence]
    computed: list[Computed]

    def results(self) -> list[Computed]:
        self.executor.told(self)
        return self.computed
