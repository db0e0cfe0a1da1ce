"""The engine: sequences in, tokens out, one ragged batch a step. Knows no sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from ..shared.logs import short_hash
from ..shared.messages import Finish
from ..shared.queue_place import QueuePlace
from .faults import Outcome, error_of, finish_of, run_in_halves
from .model_runner import ModelRunner, StepOutput
from .pulse import Pulse
from .sampler import LogitRow, Sampler
from .scheduler import Plan, ScheduledSequence, Scheduler
from .scoring import score
from .sequence import Sequence
from .step_times import StepTimes
from .stopping import take_token
from .waiting_room import WaitingRoom
from .warm_up import warm_up_plans

WARM_UP_S = 1.5
TUNING_SHARE = 3  # of it
NUM_RATE_SAMPLES = 32  # finishes that the estimated wait looks back on

log = structlog.get_logger(__name__)


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
        self.waiting_room = WaitingRoom()  # one with a compiler takes its place where there is one
        self.times = StepTimes()
        self.last_plan = Plan(())
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0  # of the drafts
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids
        self.pulse = pulse or Pulse.private()
        self._finished_at: deque[float] = deque(maxlen=NUM_RATE_SAMPLES)  # in busy seconds

    def warm_up(self, max_s: float = WARM_UP_S) -> None:
        """Steps of nobody's tokens, in each size twice: matrix kernels are made at their first use,
        and the second time teaches the pace. The larger sizes are left out when time is up."""
        deadline = self.times.clock() + max_s
        max_num_seqs, runner = self.scheduler.max_num_seqs, self._runner
        plans = [*warm_up_plans(max_num_seqs, runner.max_model_len, runner.null_block)]
        runner.tune(plans[0], self.times.clock, max_s / TUNING_SHARE)
        for plan in plans:
            runner.run(runner.prepare(plan))
            started = self.times.clock()
            runner.run(runner.prepare(plan))
            ended = self.times.clock()
            if self.scheduler.pace is not None:
                self.scheduler.pace.model.learn(plan.work, ended - started)
            if ended > deadline:
                return

    def add(self, sequence: Sequence, output_token_ids: Iterable[int] = ()) -> None:
        """Goes on after `output_token_ids`, which the request has had already.

        They are taken once more, one by one, so the sequence may end here. One with a grammar does
        so when that is compiled.
        """
        output = list(output_token_ids)
        sequence.journey.arrived = self.times.clock()
        sequence.journey.num_resumed_tokens = len(output)
        if sequence.params.grammar is None:
            self._join(sequence, output)
        else:
            error = error_of(lambda: self.waiting_room.enter(sequence, output))
            if error is not None:
                sequence.finish = finish_of(sequence, error)
        self._note_ends([sequence])

    def _join(self, sequence: Sequence, output_token_ids: Iterable[int]) -> None:
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
        self._note_ends([sequence])
        if not self.waiting_room.discard(sequence):
            self.scheduler.remove(sequence)
        # What was held back belongs to tokens that were handed out.
        error = error_of(sequence.detokenizer.flush)
        if error is not None:
            log.error("text lost", request=short_hash(sequence.request_id), exc_info=error)

    def hurry(self, sequence: Sequence) -> None:
        """It is short of time. Nothing as long as its grammar is compiled: say it again."""
        if sequence not in self.waiting_room:
            self.scheduler.hurry(sequence)

    def queue_place(self, sequence: Sequence) -> QueuePlace:
        """Of one that waits; behind all others as long as its grammar is compiled."""
        is_compiling = sequence in self.waiting_room
        scheduler = self.scheduler
        num_ahead = scheduler.num_waiting if is_compiling else scheduler.num_ahead(sequence)
        return QueuePlace(num_ahead, self.estimated_wait_ms(num_ahead))

    def step(self) -> list[Sequence]:
        """Runs one step; the sequences that have a new token or have ended."""
        started = self.times.clock()
        ended = self._join_compiled()
        self._note_ends(ended)
        plan = self.scheduler.plan()
        if not plan.entries:
            return ended
        self.times.schedule_s += self.times.clock() - started
        work = plan.work
        outcome = run_in_halves(plan, self._run)
        computed = self.times.clock()
        if self.scheduler.pace is not None and outcome.plan is plan:
            self.scheduler.pace.model.learn(work, computed - started)
        if outcome.plan is not plan:  # it ran in halves, and the pulse knows of the last
            self._begin(plan)
        changed = self._commit(outcome, started)
        self.times.commit_s += self.times.clock() - computed
        self.pulse.end_step()
        num_finished = self._note_ends(changed)
        self._finished_at.extend([self.times.busy_s] * (len(ended) + num_finished))
        return ended + changed

    def _note_ends(self, sequences: Iterable[Sequence]) -> int:
        """How many of them have ended."""
        ended = [sequence for sequence in sequences if sequence.finish is not None]
        for sequence in ended:
            sequence.journey.ended = self.times.clock()
        return len(ended)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self.waiting_room.has_news

    @property
    def patience_s(self) -> float:
        """How long a loop without work may sleep."""
        return self.waiting_room.patience_s

    @property
    def num_compiling(self) -> int:
        """Sequences that wait for their grammars."""
        return len(self.waiting_room)

    def _join_compiled(self) -> list[Sequence]:
        """Those that waited for their grammars long enough; the ones that have ended with it."""
        guests = self.waiting_room.leaving()
        for guest in guests:
            if guest.sequence.finish is None:
                self._join(guest.sequence, guest.output_token_ids)
        return [guest.sequence for guest in guests if guest.sequence.finish is not None]

    def _run(self, plan: Plan) -> list[Computed]:
        """The results of `plan.entries`; nothing of it is committed."""
        self._begin(plan)
        times = self.times
        started = times.clock()
        prepared = self._runner.prepare(plan)
        planned = times.clock()
        output = self._runner.run(prepared)
        computed = times.clock()
        results = self._sample(plan, output)
        times.schedule_s += planned - started
        times.forward_s += computed - planned
        times.sample_s += times.clock() - computed
        return results

    def _sample(self, plan: Plan, output: StepOutput) -> list[Computed]:
        rows = [
            LogitRow(e.sequence, number) for e in plan.entries for number in range(e.num_sampled)
        ]
        kept = [  # since the sampler writes over the logits
            output.logits[number].clone() if row.sequence.wants_score else None
            for number, row in enumerate(rows)
        ]
        tokens = self._sampler.sample(output.logits, rows)
        results, start = [], 0
        for number, entry in enumerate(plan.entries):
            stop = start + entry.num_sampled
            choices = _choices(entry, tokens[start:stop], kept[start:stop])
            scores = tuple(output.scores.get(number, ()))
            results.append(Computed(choices, scores, output.hidden.get(number)))
            start = stop
        return results

    def _begin(self, plan: Plan) -> None:
        self.pulse.begin_step([entry.sequence.request_id for entry in plan.entries])

    def _commit(self, outcome: Outcome[Computed], began: float) -> list[Sequence]:
        """Takes the results in; the sequences that the step has changed."""
        plan, failures = outcome.plan, [f for f in outcome.failures if f.sequence.finish is None]
        suspects = [entry.sequence for entry in plan.entries if entry.sequence.is_suspect]
        self.num_prompt_tokens += sum(entry.num_prompt_tokens for entry in plan.entries)
        self.num_draft_tokens += sum(len(entry.drafts) for entry in plan.entries)
        for entry, computed in zip(plan.entries, outcome.results, strict=True):
            _take_along(entry, computed)
        self.scheduler.commit(plan)
        self.last_plan = plan
        self.num_steps += 1
        now, num_mates, changed = self.times.clock(), len(plan.entries) - 1, []
        for entry, computed in zip(plan.entries, outcome.results, strict=True):
            sequence = entry.sequence
            if sequence.finish is not None:  # a ghost of static batching
                continue
            sequence.journey.ride(entry.span, num_mates, began, now, is_chunk=entry.is_chunk)
            if entry.is_sampled:
                self._take_sampled(sequence, computed.choices)
            elif sequence.is_prompt_all and not sequence.num_uncomputed_tokens:
                self._end_prompt(sequence)
            if entry.is_sampled or computed.scores or sequence.finish is not None:
                changed.append(sequence)
        for failure in failures:
            self.end(failure.sequence, failure.finish)
        for suspect in suspects:
            if not suspect.is_suspect or suspect.finish is not None:
                self.pulse.clear(suspect.request_id)
        return [*changed, *(failure.sequence for failure in failures)]

    def _take_sampled(self, sequence: Sequence, choices: tuple[Choice, ...]) -> None:
        """One after the other, until the sequence ends."""
        for number, choice in enumerate(choices):
            if number:  # it comes after a draft that was right
                self.scheduler.confirm_draft(sequence)
                self.num_accepted_tokens += 1
            self._take_choice(sequence, choice)
            if sequence.finish is not None:
                self.scheduler.remove(sequence)
                return

    def _take_choice(self, sequence: Sequence, choice: Choice) -> None:
        if choice.token_id is None:
            self.end(sequence, _NOT_A_NUMBER)
            return
        if isinstance(choice.token_id, BaseException):
            self.end(sequence, finish_of(sequence, choice.token_id))
            return
        num_tokens = sequence.num_tokens
        self._take(sequence, choice.token_id)
        if sequence.num_tokens == num_tokens:
            return
        self.num_generation_tokens += 1
        if sequence.journey.first_token is None:
            sequence.journey.first_token = self.times.clock()
        if choice.score:
            sequence.scores.take(num_tokens, choice.score)

    def _end_prompt(self, sequence: Sequence) -> None:
        """Of a request that wants no tokens: its prompt has been read to the end."""
        cached = sequence.num_cached_tokens
        if sequence.pool is None:
            self.end(sequence, Finish("length", None, cached))
        elif sequence.pool.is_number:
            self.end(sequence, Finish("stop", None, cached))
        else:
            self.end(sequence, _NOT_A_NUMBER)

    def _take(self, sequence: Sequence, token_id: int) -> None:
        """A token that the sequence's own parts can't digest ends it, and never was."""
        num_tokens = sequence.num_tokens
        error = error_of(lambda: take_token(sequence, token_id, self._eos_token_ids))
        if error is not None:
            del sequence.token_ids[num_tokens:]
            sequence.finish = finish_of(sequence, error)

    def estimated_wait_ms(self, num_ahead: int | None = None) -> int:
        """Until so many are through, by default all that wait, at the rate of the last finishes; a
        second at least.

        The rate is one of busy time: an idle hour makes nobody wait longer.
        """
        finished = self._finished_at
        if len(finished) < 2:
            return 1000
        seconds_each = (self.times.busy_s - finished[0]) / (len(finished) - 1)
        count = self.scheduler.num_waiting if num_ahead is None else num_ahead
        return max(1000, round(1000 * seconds_each * count))


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


def _take_along(entry: ScheduledSequence, computed: Computed) -> None:
    """All but the new tokens, before the entry's tokens count as computed."""
    sequence = entry.sequence
    for index, record in zip(entry.to_score, computed.scores, strict=True):
        sequence.scores.take(index, record)
    if sequence.pool is not None and computed.hidden is not None:
        sequence.pool.add(sequence.num_computed_tokens, computed.hidden)


_NOT_A_NUMBER = Finish(
    "error",
    code="model_output_not_finite",
    message="the model's output for this request is not a number; other requests are not affected",
)
