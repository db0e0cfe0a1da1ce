"""Computes steps. What an engine plans it launches here, and it takes the results in later."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .model_runner import ModelRunner, StepOutput
from .pace import Pace
from .sampler import LogitRow, Sampler
from .scheduler import Plan, ScheduledSequence
from .scoring import score
from .step_times import StepTimes
from .warm_up import warm_up_plans

TUNING_SHARE = 3  # of the time to warm up


@dataclass(frozen=True, slots=True)
class Choice:
    """The token that was sampled of one row."""

    # None where the model's numbers are no numbers; or why there is none.
    token_id: int | BaseException | None
    score: bytes = b""  # its record, if it wants one


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step yields for one entry of its plan. Nothing of it is the sequence's yet."""

    choices: tuple[Choice, ...] = ()  # the next token, and one after each draft that was right
    scores: tuple[bytes, ...] = ()  # records of the tokens to score
    hidden: NDArray[np.float32] | None = None  # to pool
    error: Exception | None = None  # that it could not be read with: then there is nothing else


class Flight(Protocol):
    """A plan that was launched."""

    def results(self) -> list[Computed]:
        """Of each entry, in the plan's order; waits until they are there."""
        ...


class Executor(ABC):
    """Computes plans in the order in which they are launched.

    `depth` steps may be in flight while the next one is planned. Their tokens are known to the
    executor before the engine knows them, so that the next step can begin with them.
    """

    depth: int = 0  # where there is one, no drafts are verified

    @abstractmethod
    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        """Raises what the plan's sequences are to blame for; it may then be launched in parts, once
        nothing is in flight."""

    def check(self) -> None:
        """After a failure with nothing in flight: raises if it can compute nothing any more."""
        return

    def warm_up(self, max_num_seqs: int, pace: Pace | None, max_s: float) -> None:
        """Before the first request: whatever takes its time once. May take `max_s`."""
        return

    def idle(self) -> bool:
        """A piece of what is better done while nobody waits; whether there was any. Nothing is in
        flight."""
        return False


@dataclass(frozen=True, slots=True)
class Landed:
    """Computed as soon as it was launched."""

    computed: list[Computed]

    def results(self) -> list[Computed]:
        return self.computed


class HostExecutor(Executor):
    """Computes each plan at once, in the engine's own thread."""

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self.runner = runner
        self.sampler = sampler

    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        started = times.clock()
        prepared = self.runner.prepare(plan)
        planned = times.clock()
        output = self.runner.run(prepared)
        computed = times.clock()
        results = self._sample(plan, output)
        times.schedule_s += planned - started
        times.forward_s += computed - planned
        times.sample_s += times.clock() - computed
        return Landed(results)

    def warm_up(self, max_num_seqs: int, pace: Pace | None, max_s: float) -> None:
        """Steps of nobody's tokens, in each size twice: matrix kernels are made at their first use,
        and the second time teaches the pace. The larger sizes are left out when time is up."""
        clock, runner = time.perf_counter, self.runner
        deadline = clock() + max_s
        plans = [*warm_up_plans(max_num_seqs, runner.max_model_len, runner.null_block)]
        runner.tune(plans[0], clock, max_s / TUNING_SHARE)
        for plan in plans:
            runner.run(runner.prepare(plan))
            started = clock()
            runner.run(runner.prepare(plan))
            ended = clock()
            if pace is not None:
                pace.model.learn(plan.work, ended - started)
            if ended > deadline:
                return

    def _sample(self, plan: Plan, output: StepOutput) -> list[Computed]:
        rows = [
            LogitRow(e.sequence, number) for e in plan.entries for number in range(e.num_sampled)
        ]
        kept = [  # since the sampler writes over the logits
            output.logits[number].clone() if row.sequence.wants_score else None
            for number, row in enumerate(rows)
        ]
        tokens = self.sampler.sample(output.logits, rows)
        results, start = [], 0
        for number, entry in enumerate(plan.entries):
            stop = start + entry.num_sampled
            choices = _choices(entry, tokens[start:stop], kept[start:stop])
            scores = tuple(output.scores.get(number, ()))
            results.append(Computed(choices, scores, output.hidden.get(number)))
            start = stop
        return results


def _choices(
    entry: ScheduledSequence,
    tokens: list[int | BaseException | None],
    kept: list[torch.Tensor | None],
) -> tuple[Choice, ...]:
    """Of the entry's rows with nothing wrong before them: the first, and the next as long as the
    draft is what was sampled in its place."""
    choices = []
    for token, logits, draft in zip(tokens, kept, (*entry.drafts, None), strict=False):
        record = b""
        if logits is not None and isinstance(token, int):
            record = score(logits, token, entry.sequence.params.num_logprobs)
        choices.append(Choice(token, record))
        if token != draft:
            break
    return tuple(choices)
