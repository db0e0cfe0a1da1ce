"""The engine: sequences in, tokens out, one ragged batch a step. Knows no sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from ..shared.logs import short_hash
from ..shared.messages import Finish
from .faults import Outcome, error_of, finish_of, run_in_halves
from .model_runner import ModelRunner
from .pulse import Pulse
from .sampler import Sampler
from .scheduler import Plan, Scheduler
from .sequence import Sequence
from .stopping import take_token

NUM_RATE_SAMPLES = 32  # finishes that the estimated wait looks back on

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class StepTimes:
    """Seconds spent, summed over steps."""

    clock: Callable[[], float] = time.perf_counter
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.forward_s + self.sample_s + self.commit_s


class Engine:
    """Owns the scheduler, the model and the sampler; the worker's loop drives it.

    What goes wrong with one sequence ends that sequence. The pulse knows whose step it is, should
    the process die of it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        eos_token_ids: frozenset[int],
        pulse: Pulse | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.times = StepTimes()
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids
        self._pulse = pulse or Pulse.private()
        self._finished_at: deque[float] = deque(maxlen=NUM_RATE_SAMPLES)  # in busy seconds

    def add(self, sequence: Sequence, output_token_ids: Iterable[int] = ()) -> None:
        """Goes on after `output_token_ids`, which the request has had already.

        They are taken once more, one by one, so the sequence may end here.
        """
        for token_id in output_token_ids:
            self._take(sequence, token_id)
            if sequence.finish is not None:
                return
        self.scheduler.add(sequence)

    def end(self, sequence: Sequence, finish: Finish) -> None:
        """Ends the sequence before its time, wherever it is; nothing if it has ended."""
        if sequence.finish is not None:
            return
        sequence.finish = finish
        self.scheduler.remove(sequence)
        # What was held back belongs to tokens that were handed out.
        error = error_of(sequence.detokenizer.flush)
        if error is not None:
            log.error("text lost", request=short_hash(sequence.request_id), exc_info=error)

    def step(self) -> list[Sequence]:
        """Runs one step; the sequences that have a new token or have ended."""
        started = self.times.clock()
        plan = self.scheduler.plan()
        if not plan.entries:
            return []
        self.times.schedule_s += self.times.clock() - started
        outcome = run_in_halves(plan, self._run)
        computed = self.times.clock()
        if outcome.plan is not plan:  # it ran in halves, and the pulse knows of the last
            self._begin(plan)
        named = self._commit(outcome)
        self.times.commit_s += self.times.clock() - computed
        self._pulse.end_step()
        num_finished = sum(sequence.finish is not None for sequence in named)
        self._finished_at.extend([self.times.total_s] * num_finished)
        return named

    def _run(self, plan: Plan) -> list[int | None]:
        """The tokens of `plan.sampled`; nothing of it is committed."""
        self._begin(plan)
        times = self.times
        started = times.clock()
        prepared = self._runner.prepare(plan)
        planned = times.clock()
        logits = self._runner.run(prepared)
        computed = times.clock()
        tokens = self._sampler.sample(logits, plan.sampled)
        times.schedule_s += planned - started
        times.forward_s += computed - planned
        times.sample_s += times.clock() - computed
        return tokens

    def _begin(self, plan: Plan) -> None:
        self._pulse.begin_step([entry.sequence.request_id for entry in plan.entries])

    def _commit(self, outcome: Outcome) -> list[Sequence]:
        """Takes the tokens in; the sequences that the step has changed."""
        plan, failures = outcome.plan, [f for f in outcome.failures if f.sequence.finish is None]
        suspects = [sequence for sequence in plan.sampled if sequence.is_suspect]
        self.num_prompt_tokens += sum(entry.num_prompt_tokens for entry in plan.entries)
        self.scheduler.commit(plan)
        self.num_steps += 1
        for sequence, token in zip(plan.sampled, outcome.tokens, strict=True):
            self._take_sampled(sequence, token)
        for failure in failures:
            self.end(failure.sequence, failure.finish)
        for suspect in suspects:
            self._pulse.clear(suspect.request_id)
        return [*plan.sampled, *(failure.sequence for failure in failures)]

    def _take_sampled(self, sequence: Sequence, token_id: int | None) -> None:
        if token_id is None:
            self.end(sequence, _NOT_A_NUMBER)
            return
        num_tokens = sequence.num_tokens
        self._take(sequence, token_id)
        self.num_generation_tokens += sequence.num_tokens - num_tokens
        if sequence.finish is not None:
            self.scheduler.remove(sequence)

    def _take(self, sequence: Sequence, token_id: int) -> None:
        """A token that the sequence's own parts can't digest ends it, and never was."""
        num_tokens = sequence.num_tokens
        error = error_of(lambda: take_token(sequence, token_id, self._eos_token_ids))
        if error is not None:
            del sequence.token_ids[num_tokens:]
            sequence.finish = finish_of(sequence, error)

    def estimated_wait_ms(self) -> int:
        """Until today's queue is through, at the rate of the last finishes; a second at least.

        The rate is one of busy time: an idle hour makes nobody wait longer.
        """
        finished = self._finished_at
        if len(finished) < 2:
            return 1000
        seconds_each = (self.times.total_s - finished[0]) / (len(finished) - 1)
        return max(1000, round(1000 * seconds_each * self.scheduler.num_waiting))


_NOT_A_NUMBER = Finish(
    "error",
    code="model_output_not_finite",
    message="the model's output for this request is not a number; other requests are not affected",
)
