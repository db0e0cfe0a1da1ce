"""The engine: sequences in, tokens out, one ragged batch a step. Knows no sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..shared.messages import Finish
from .model_runner import ModelRunner
from .sampler import Sampler
from .scheduler import Plan, Scheduler
from .sequence import Sequence
from .stopping import take_token

NUM_RATE_SAMPLES = 32  # finishes that the estimated wait looks back on


@dataclass(slots=True)
class StepTimes:
    """Seconds spent, summed over steps."""

    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.forward_s + self.sample_s + self.commit_s


class Engine:
    """Owns the scheduler, the model and the sampler; the worker's loop drives it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        eos_token_ids: frozenset[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.scheduler = scheduler
        self.times = StepTimes()
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._finished_at: deque[float] = deque(maxlen=NUM_RATE_SAMPLES)  # in busy seconds

    def add(self, sequence: Sequence, output_token_ids: Iterable[int] = ()) -> None:
        """Goes on after `output_token_ids`, which the request has had already.

        They are taken once more, one by one, so the sequence may end here.
        """
        for token_id in output_token_ids:
            take_token(sequence, token_id, self._eos_token_ids)
            if sequence.finish is not None:
                return
        self.scheduler.add(sequence)

    def end(self, sequence: Sequence, finish: Finish) -> None:
        """Ends the sequence before its time, wherever it is; nothing if it has ended."""
        if sequence.finish is None:
            sequence.finish = finish
            sequence.detokenizer.flush()  # what was held back belongs to tokens handed out
            self.scheduler.remove(sequence)

    def step(self) -> list[Sequence]:
        """Runs one step; the sequences that have a new token or have ended."""
        started = self._clock()
        plan = self.scheduler.plan()
        if not plan.entries:
            return []
        prepared = self._runner.prepare(plan)
        planned = self._clock()
        logits = self._runner.run(prepared)
        computed = self._clock()
        sampled = plan.sampled
        tokens = self._sampler.sample(logits, sampled)
        chosen = self._clock()
        self._commit(plan, sampled, tokens)
        self.times.schedule_s += planned - started
        self.times.forward_s += computed - planned
        self.times.sample_s += chosen - computed
        self.times.commit_s += self._clock() - chosen
        num_finished = sum(sequence.finish is not None for sequence in sampled)
        self._finished_at.extend([self.times.total_s] * num_finished)
        return sampled

    def _commit(self, plan: Plan, sampled: list[Sequence], tokens: list[int | None]) -> None:
        self.num_prompt_tokens += sum(entry.num_prompt_tokens for entry in plan.entries)
        self.scheduler.commit(plan)
        self.num_steps += 1
        for sequence, token in zip(sampled, tokens, strict=True):
            if token is None:
                self.end(sequence, _NOT_A_NUMBER)
                continue
            take_token(sequence, token, self._eos_token_ids)
            self.num_generation_tokens += 1
            if sequence.finish is not None:
                self.scheduler.remove(sequence)

    def estimated_wait_ms(self) -> int:
        """Until today's queue is through, at the rate of the last finishes; a second at least.

        The rate is one of busy time: an idle hour makes nobody wait longer.
        """
        finished = self._finished_at
        if len(finished) < 2:
            return 1000
        seconds_each = (self.times.total_s - finished[0]) / (len(finished) - 1)
        return max(1000, round(1000 * seconds_each * len(self.scheduler.waiting)))


_NOT_A_NUMBER = Finish(
    "error",
    code="model_output_not_finite",
    message="the model's output for this request is not a number; other requests are not affected",
)
