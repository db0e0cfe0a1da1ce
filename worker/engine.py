"""The engine: sequences in, tokens out, one ragged batch a step. Knows no sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from ..shared.logs import short_hash
from ..shared.messages import Finish
from ..shared.queue_place import QueuePlace
from .executor import Choice, Computed, Executor, Flight
from .faults import Outcome, error_of, finish_of, run_in_halves
from .pace import Work
from .pulse import Pulse
from .scheduler import Plan, ScheduledSequence, Scheduler
from .sequence import Sequence
from .step_times import StepTimes
from .stopping import take_token
from .waiting_room import WaitingRoom

WARM_UP_S = 1.5
NUM_RATE_SAMPLES = 32  # finishes that the estimated wait looks back on

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A plan that was launched, in one piece or in parts, and what is to become of it."""

    plan: Plan
    outcome: Outcome[Flight]  # of as much of the plan as could be launched
    work: Work
    began: float

    @property
    def is_whole(self) -> bool:
        return self.outcome.plan is self.plan


class Engine:
    """Owns the scheduler and what computes its plans; the worker's loop drives it.

    An executor that has a depth is kept busy: the next step is planned and launched while one is
    in flight, before its tokens are known. What has ended by then may ride once more, in vain, and
    its blocks are its own until that step has landed.

    What goes wrong with one sequence ends that sequence. The pulse knows whose steps they are,
    should the process die of it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
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
        self.executor = executor
        self._in_flight: deque[_InFlight] = deque()
        self._landed = 0.0  # when the last step did
        self._has_chores = False  # of the executor's, for want of steps
        self._eos_token_ids = eos_token_ids
        self.pulse = pulse or Pulse.private()
        self._finished_at: deque[float] = deque(maxlen=NUM_RATE_SAMPLES)  # in busy seconds

    def warm_up(self, max_s: float = WARM_UP_S) -> None:
        """Before the first request; takes about that long at most."""
        self.executor.warm_up(self.scheduler.max_num_seqs, self.scheduler.pace, max_s)

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
        """Launches the next step, and takes in those that may no longer be in flight; the sequences
        that have a new token or have ended."""
        started = self.times.clock()
        changed = self._join_compiled()
        self._note_ends(changed)
        num_ended = len(changed)
        plan = self.scheduler.plan()
        self.times.schedule_s += self.times.clock() - started
        if plan.entries:
            if plan.has_suspect:
                changed += self._land_until(0)
            changed += self._launch(plan, started)
        changed += self._land_until(self._depth_after(plan))
        is_idle = not (plan.entries or changed or self.has_work)  # nor do any wait for news
        self._has_chores = is_idle and self.executor.idle()
        self._finished_at.extend([self.times.busy_s] * num_ended)
        return list(dict.fromkeys(changed))  # each once, however many steps have landed

    def _depth_after(self, plan: Plan) -> int:
        """How many steps may stay in flight: none where the next plan depends on what they yield.
        Nobody is to be in flight beside a suspect."""
        if not plan.entries or plan.has_suspect or self.scheduler.lacks_blocks:
            return 0
        return self.executor.depth

    def _launch(self, plan: Plan, began: float) -> list[Sequence]:
        """The sequences that steps have changed which had to land because of it."""
        work, outcome = plan.work, self._launched(plan)
        if outcome is None:
            return self._land_until(0)
        step = _InFlight(plan, outcome, work, began)
        self.scheduler.advance(outcome.plan)
        self._in_flight.append(step)
        if not step.is_whole:  # it ran in halves, and the pulse knows of the last
            self._tell_pulse()
        return []

    def _launched(self, plan: Plan) -> Outcome[Flight] | None:
        """None if it fails beside a step in flight: it is planned again when all tokens are known,
        for what failed may have changed what the device knows."""
        if not self._in_flight:
            outcome = run_in_halves(plan, self._launch_part)
            if outcome.failures:
                self.executor.check()
            return outcome
        try:
            return Outcome(plan, self._launch_part(plan))
        except Exception as error:
            log.warning("a step failed: planning it again", size=len(plan.entries), why=repr(error))
            return None

    def _launch_part(self, plan: Plan) -> list[Flight]:
        self._tell_pulse(plan)
        return [self.executor.launch(plan, self.times)]

    def _land_until(self, num_left: int) -> list[Sequence]:
        """The oldest first, until so many are in flight; the sequences that this changed."""
        changed: list[Sequence] = []
        while len(self._in_flight) > num_left:
            changed += self._land(self._in_flight.popleft())
        return changed

    def _land(self, step: _InFlight) -> list[Sequence]:
        times, outcome = self.times, step.outcome
        started = times.clock()
        computed = [each for flight in outcome.results for each in flight.results()]
        if any(each.error for each in computed):
            self.executor.check()
        now = times.clock()
        times.forward_s += now - started
        if self.scheduler.pace is not None and step.is_whole:
            self.scheduler.pace.model.learn(step.work, now - max(step.began, self._landed))
        self._landed = now
        changed = self._commit(outcome, computed, step.began)
        times.commit_s += times.clock() - now
        self.pulse.end_step()
        self._tell_pulse()
        self._finished_at.extend([times.busy_s] * self._note_ends(changed))
        return changed

    def _tell_pulse(self, launching: Plan | None = None) -> None:
        """Whose steps are in flight, and about to be."""
        plans = [step.plan for step in self._in_flight]
        plans += [launching] if launching is not None else []
        ids = [entry.sequence.request_id for plan in plans for entry in plan.entries]
        if ids:
            self.pulse.begin_step(list(dict.fromkeys(ids)))

    def _note_ends(self, sequences: Iterable[Sequence]) -> int:
        """How many of them have ended."""
        ended = [sequence for sequence in sequences if sequence.finish is not None]
        for sequence in ended:
            sequence.journey.ended = self.times.clock()
        return len(ended)

    @property
    def has_work(self) -> bool:
        return bool(self._in_flight) or self.scheduler.has_work or self.waiting_room.has_news

    @property
    def patience_s(self) -> float:
        """How long a loop without work may sleep."""
        return 0.0 if self._has_chores else self.waiting_room.patience_s

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

    def _commit(
        self, outcome: Outcome[Flight], results: list[Computed], began: float
    ) -> list[Sequence]:
        """Takes the results in; the sequences that the step has changed."""
        plan, failures = outcome.plan, [f for f in outcome.failures if f.sequence.finish is None]
        suspects = [entry.sequence for entry in plan.entries if entry.sequence.is_suspect]
        self.num_prompt_tokens += sum(entry.num_prompt_tokens for entry in plan.entries)
        self.num_draft_tokens += sum(len(entry.drafts) for entry in plan.entries)
        for entry, computed in zip(plan.entries, results, strict=True):
            _take_along(entry, computed)
        self.scheduler.land(plan)
        self.last_plan = plan
        self.num_steps += 1
        now, num_mates, changed = self.times.clock(), len(plan.entries) - 1, []
        for entry, computed in zip(plan.entries, results, strict=True):
            sequence = entry.sequence
            if sequence.finish is not None:  # it has ended meanwhile, or is a ghost
                continue
            sequence.journey.ride(entry.span, num_mates, began, now, is_chunk=entry.is_chunk)
            self._take_computed(entry, computed)
            if entry.is_sampled or computed.scores or sequence.finish is not None:
                changed.append(sequence)
        for failure in failures:
            self.end(failure.sequence, failure.finish)
        for suspect in suspects:
            if not suspect.is_suspect or suspect.finish is not None:
                self.pulse.clear(suspect.request_id)
        return [*changed, *(failure.sequence for failure in failures)]

    def _take_computed(self, entry: ScheduledSequence, computed: Computed) -> None:
        sequence = entry.sequence
        if computed.error is not None:
            self.end(sequence, finish_of(sequence, computed.error))
        elif entry.is_sampled:
            self._take_sampled(sequence, computed.choices)
        elif sequence.is_prompt_all and not sequence.num_uncomputed_tokens:
            self._end_prompt(sequence)

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


def _take_along(entry: ScheduledSequence, computed: Computed) -> None:
    """All but the new tokens, before the entry's tokens count as computed."""
    sequence = entry.sequence
    for index, record in zip(entry.to_score, computed.scores, strict=computed.error is None):
        sequence.scores.take(index, record)
    if sequence.pool is not None and computed.hidden is not None:
        sequence.pool.add(entry.first, computed.hidden)


_NOT_A_NUMBER = Finish(
    "error",
    code="model_output_not_finite",
    message="the model's output for this request is not a number; other requests are not affected",
)
