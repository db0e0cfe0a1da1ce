"""Which tokens of which sequences the next step computes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter

from .block_manager import BlockManager
from .fair_share import FairShare
from .pace import Pace, Work
from .sequence import Sequence, Status
from .speculation import Speculation

NO_WORK = Work()
TOKENS_PER_CLASS = 1 << 21  # several full queues: what waits at the same time goes by class

_place = attrgetter("place")


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The step computes `num_tokens` tokens of the sequence from `first` on, which are the next;
    `num_prompt_tokens` of them are the prompt's. If that catches up with all it has, the next one
    `is_sampled`, unless the request wants none; `to_score` are those of its tokens whose log
    probabilities are wanted and come of these. `drafts` are guesses at the tokens after its own,
    which are computed with them: a token is sampled after each of them as well, and counts if the
    draft turns out to be right. Tokens are the sequence's own; rows are all that is computed."""

    sequence: Sequence
    num_tokens: int
    num_prompt_tokens: int
    is_sampled: bool
    to_score: range = range(0)
    drafts: tuple[int, ...] = ()
    first: int = 0

    @property
    def span(self) -> range:
        return range(self.first, self.first + self.num_tokens)

    @property
    def is_chunk(self) -> bool:
        """Of a prompt, or of what is computed again after a preemption."""
        return self.num_tokens > 1 or self.num_prompt_tokens > 0

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.drafts)

    @property
    def num_sampled(self) -> int:
        """How many of its rows, the last, a token is sampled of."""
        return 1 + len(self.drafts) if self.is_sampled else 0

    @classmethod
    def next_of(cls, sequence: Sequence, num_tokens: int) -> ScheduledSequence:
        num_prompt_tokens_left = sequence.num_prompt_tokens - sequence.num_computed_tokens
        return cls(
            sequence,
            num_tokens,
            num_prompt_tokens=max(0, min(num_tokens, num_prompt_tokens_left)),
            is_sampled=num_tokens == sequence.num_uncomputed_tokens
            and sequence.params.max_tokens > 0,
            to_score=sequence.scores.due(
                sequence.num_computed_tokens, num_tokens, sequence.num_tokens
            ),
            first=sequence.num_computed_tokens,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one step.

    Only static batching has padding: rows that belong to no sequence.
    """

    entries: tuple[ScheduledSequence, ...]
    num_padding_tokens: int = 0

    @property
    def num_rows(self) -> int:
        return sum(entry.num_rows for entry in self.entries)

    @property
    def work(self) -> Work:
        return _work_of(self.entries)

    @property
    def has_suspect(self) -> bool:
        return any(entry.sequence.is_suspect for entry in self.entries)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences whose next token the step yields, in order."""
        return [entry.sequence for entry in self.entries if entry.is_sampled]


class Scheduler(ABC):
    """Owns the waiting and the running sequences.

    Every sequence is in exactly one of `waiting`, `suspects` and `running` from `add` to `remove`.
    `waiting` and `running` are sorted by its `place`, which only `hurry` changes: the time at which
    FairShare lets it begin, where a class of priority counts like `TOKENS_PER_CLASS`
    tokens of service, then the number of its arrival. So no class starves another: for each class
    that a request is better by, it has so many tokens' time to overtake, and no more. The requests
    of one tenant and one class go in order of arrival, but for those that are short of time.

    A suspect, which may have killed a worker, has to run alone until it has caught up and a token
    was sampled; then it is one of the running. Only those whose status is RUNNING hold blocks.

    With a `pace`, which learns from each step what steps cost, prompts leave decodes their time.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        pace: Pace | None = None,
    ) -> None:
        self.block_manager = block_manager
        self.pace = pace
        self.fair_share = FairShare()
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self.lacks_blocks = False  # the last plan left out what has to wait for those in flight
        self.num_waiting_tokens = 0  # of the waiting and the suspects
        self.waiting: list[Sequence] = []
        self.suspects: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._num_arrivals = 0

    @abstractmethod
    def plan(self) -> Plan:
        """The next step's work; empty when there is none."""

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.suspects or self.running)

    @property
    def num_waiting(self) -> int:
        """Suspects included: nobody else is served with them."""
        return len(self.waiting) + len(self.suspects)

    def add(self, sequence: Sequence) -> None:
        self._num_arrivals += 1
        tag = self.fair_share.start(sequence)
        sequence.place = (tag + TOKENS_PER_CLASS * sequence.priority, self._num_arrivals)
        self._join_queue(sequence)

    def hurry(self, sequence: Sequence) -> None:
        """It is short of time: where it waits for its first step it goes ahead, once, by what
        FairShare grants it. Nothing otherwise; a suspect's turn is another matter."""
        if sequence.is_suspect or not sequence.waits_to_begin:
            return
        head_start = self.fair_share.hurry(sequence)
        if head_start:
            tag, number = sequence.place
            self._leave_queue(sequence)
            sequence.place = (tag - head_start, number)
            self._join_queue(sequence)

    def num_ahead(self, sequence: Sequence) -> int:
        """How many of the waiting stand before this one, suspects included."""
        if sequence.is_suspect:
            return self.suspects.index(sequence)
        return len(self.suspects) + bisect_left(self.waiting, sequence.place, key=_place)

    def remove(self, sequence: Sequence) -> None:
        """Finished or cancelled: at once and whole, whatever it was doing."""
        if sequence.status is Status.FINISHED:
            return
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._leave_queue(sequence)
        self._finish(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """What is in flight reads and writes its blocks until it lands."""
        if not sequence.num_flights:
            self.block_manager.release(sequence)

    def _finish(self, sequence: Sequence) -> None:
        sequence.status = Status.FINISHED
        self.fair_share.settle(sequence)

    def advance(self, plan: Plan) -> None:
        """The plan was launched: what is planned from now on comes after it."""
        for entry in plan.entries:
            sequence = entry.sequence
            sequence.num_computed_tokens += entry.num_tokens
            sequence.num_served_tokens += entry.num_tokens
            sequence.num_pending_tokens += entry.is_sampled
            sequence.num_flights += 1
            self.block_manager.commit(sequence)

    def land(self, plan: Plan) -> None:
        """The plan has been computed. Call before its tokens are taken."""
        for entry in plan.entries:
            sequence = entry.sequence
            sequence.num_pending_tokens -= entry.is_sampled
            sequence.num_flights -= 1
            if sequence.status is Status.FINISHED:
                self._release(sequence)
            elif entry.is_sampled and sequence.is_suspect:
                self._acquit(sequence)

    def confirm_draft(self, sequence: Sequence) -> None:
        """The first draft after the tokens that count as computed was right: so does it now."""
        sequence.num_computed_tokens += 1
        sequence.num_served_tokens += 1
        self.block_manager.commit(sequence)

    def _acquit(self, suspect: Sequence) -> None:
        """It has run alone as long as it had to."""
        if suspect not in self.running:
            self._leave_queue(suspect)
            insort(self.running, suspect, key=_place)
        suspect.is_suspect = False

    def _admit(self, sequence: Sequence, num_passed: int = 0) -> bool:
        """From its queue to `running`, if its blocks and one for each other fit."""
        if not self._give_blocks(sequence, num_passed):
            return False
        self._leave_queue(sequence)
        insort(self.running, sequence, key=_place)
        return True

    def _give_blocks(self, sequence: Sequence, num_passed: int = 0) -> bool:
        if not self.block_manager.admit(sequence, headroom=len(self.running) + num_passed):
            return False
        if not sequence.is_protected:  # what a preempted one finds again is its own work
            num_computed, num_prompt = sequence.num_computed_tokens, sequence.num_prompt_tokens
            sequence.num_cached_tokens = min(num_computed, num_prompt)
        sequence.status = Status.RUNNING
        self.fair_share.boarded(sequence)
        return True

    def _join_queue(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        if sequence.is_suspect:
            self.suspects.append(sequence)
        else:
            insort(self.waiting, sequence, key=_place)
        self.num_waiting_tokens += sequence.num_tokens

    def _leave_queue(self, sequence: Sequence) -> None:
        if sequence.is_suspect:
            self.suspects.remove(sequence)
        else:
            del self.waiting[bisect_left(self.waiting, sequence.place, key=_place)]
        self.num_waiting_tokens -= sequence.num_tokens


@dataclass(slots=True)
class _Sketch:
    """A step in the making, within what is left of its tokens and of its time."""

    budget: int
    entries: list[ScheduledSequence] = field(default_factory=list)
    blocks: set[bytes] = field(default_factory=set)  # digests, of each chunk's first full block
    pace: Pace | None = None
    work: Work = NO_WORK
    limit_s: float = math.inf
    has_chunk: bool = False

    def room(self, first: int) -> int:
        """How long a chunk may be after `first` tokens. The first in a step may have the least
        length that the pace knows, however little time there is."""
        if self.pace is None:
            return self.budget
        count = self.pace.num_tokens_in(self.limit_s, self.work, first, self.budget)
        return count if self.has_chunk else max(count, min(self.pace.least_chunk, self.budget))

    def append(self, entry: ScheduledSequence) -> None:
        self.entries.append(entry)
        self.budget -= entry.num_tokens
        self.work += _work_of([entry])
        self.has_chunk = True


class ContinuousScheduler(Scheduler):
    """Continuous batching: arrivals board between two steps, finished ones leave at once.

    Each step gives every running sequence up to what it has not computed yet, within
    `max_num_batched_tokens`: first those that need one token, so that no prompt holds them up,
    then chunks of prompts, in order of their places and no longer than the pace allows beside the
    decodes; those that wait board when it is their turn. (Iteration-level scheduling: Yu et al.,
    OSDI 2022; chunked prefill beside decodes: Agrawal et al., OSDI 2024.)

    Equal prompts are computed once. Whoever lacks a block that the step computes for one ahead of
    it is passed over, with its seat and a block kept for it, and finds what it lacked in the
    prefix cache when the next step is planned. So nobody waits for more than a step in the making.

    A tenant that has all the seats that FairShare leaves it is passed over as well, and nothing is
    kept for it but its turn when one of its own has ended.

    When blocks run out, the last running sequence is preempted: it gives up its blocks and waits
    in its old place to be computed again. The first never is, and none twice before it has
    produced a token, so every sequence finishes.

    Suspects go one after the other, oldest first; their lone steps take turns with the common
    ones. The first has its blocks and a place among `max_num_seqs` as soon as there are any,
    before others board, and gives them up to nobody: it needs no more to be through.

    A step without chunks has rows to spare: with a `speculation` it verifies drafts in them. They
    stay within the blocks that their sequences hold, and so take none from anybody.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(
            block_manager,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            pace=pace,
        )
        self.speculation: Speculation | None = None
        self._is_lone_turn = True

    def _finish(self, sequence: Sequence) -> None:
        super()._finish(sequence)
        if self.speculation is not None:
            self.speculation.forget(sequence)

    def plan(self) -> Plan:
        self.lacks_blocks = False
        if self.suspects and not self._has_lone and len(self.running) < self.max_num_seqs:
            self._give_blocks(self.suspects[0])
        turns = [self._lone_step, self._common_step]
        first, second = turns if self._is_lone_turn else reversed(turns)
        entries = first() or second()
        self._is_lone_turn = not any(entry.sequence.is_suspect for entry in entries)
        return Plan(tuple(entries))

    @property
    def _has_lone(self) -> bool:
        """Whether the first of the suspects has blocks."""
        return bool(self.suspects) and self.suspects[0].status is Status.RUNNING

    def _lone_step(self) -> list[ScheduledSequence]:
        sketch = _Sketch(self.max_num_batched_tokens)
        if self._has_lone:
            self._append_chunk(sketch, self.suspects[0])
        return sketch.entries

    def _common_step(self) -> list[ScheduledSequence]:
        decodes = self._decodes()
        prompts = [s for s in self.running if s.num_uncomputed_tokens > 1]
        work = _work_of(decodes)
        sketch = _Sketch(
            self.max_num_batched_tokens - len(decodes), decodes, pace=self.pace, work=work
        )
        if self.pace is not None:
            sketch.limit_s = self.pace.limit_s(work, len(prompts) + self._num_next)
        for sequence in prompts:
            self._board_ahead_of(sequence, sketch)
            self._append_chunk(sketch, sequence)
        self._board_ahead_of(None, sketch)
        if self.speculation is None or sketch.has_chunk or not decodes:
            return sketch.entries
        rooms = {entry.sequence: self.block_manager.room(entry.sequence) for entry in decodes}
        drafts = self.speculation.drafts(rooms, work, sketch.budget)
        return [_with_drafts(entry, drafts) for entry in decodes] if drafts else decodes

    def _board_ahead_of(self, other: Sequence | None, sketch: _Sketch) -> None:
        """In order, until one has to wait for room; `None` is behind everybody."""
        num_passed, seats = 0, Counter(sequence.tenant for sequence in self.running)
        max_seats = self.fair_share.max_seats(self.max_num_seqs)
        for sequence in tuple(self.waiting):
            if not self._has_seat(num_passed):
                return
            if other is not None and sequence.place > other.place:
                return
            if seats[sequence.tenant] >= max_seats:
                continue
            if not self._may_board(sequence) or not self._has_first_chunk(sequence, sketch):
                return
            if self._is_in(sketch, sequence):
                num_passed += 1
            elif self._admit(sequence, num_passed):
                self._append_chunk(sketch, sequence)
            else:
                return
            seats[sequence.tenant] += 1

    def _is_in(self, sketch: _Sketch, sequence: Sequence) -> bool:
        """Whether the sketch has the block already that the sequence would begin with."""
        return bool(sketch.blocks) and self.block_manager.missing_block(sequence) in sketch.blocks

    def _has_seat(self, num_passed: int) -> bool:
        return len(self.running) + self._has_lone + num_passed < self.max_num_seqs

    def _may_board(self, sequence: Sequence) -> bool:
        """Ahead of a suspect that lacks room, only those board that gave theirs up."""
        return not self.suspects or self._has_lone or sequence.is_protected

    def _has_first_chunk(self, sequence: Sequence, sketch: _Sketch) -> bool:
        """Whoever boards without a chunk holds blocks for nothing, and has looked up the prefix
        cache before those ahead of it have filled it."""
        return sketch.room(0) >= min(sequence.num_tokens, self._least_chunk)

    @property
    def _num_next(self) -> int:
        """How many of the waiting there are seats for."""
        return min(len(self.waiting), self.max_num_seqs - len(self.running))

    @property
    def _chunk_unit(self) -> int:
        """Chunks end at multiples of it."""
        return self.pace.chunk_unit if self.pace is not None else self.block_manager.block_size

    @property
    def _least_chunk(self) -> int:
        block_size = self.block_manager.block_size
        return min(block_size, self.pace.least_chunk) if self.pace is not None else block_size

    def _decodes(self) -> list[ScheduledSequence]:
        """The sequences that lack one token, each with room for the next; may preempt others."""
        for sequence in tuple(self.running):
            if sequence.status is Status.RUNNING and sequence.num_uncomputed_tokens == 1:
                self._make_room(sequence)
        return [
            ScheduledSequence.next_of(sequence, 1)
            for sequence in self.running
            if sequence.num_uncomputed_tokens == 1 and self.block_manager.has_room(sequence)
        ]

    def _make_room(self, sequence: Sequence) -> None:
        """One more block if needed, taken from the last of the others; or it is last itself."""
        while not self.block_manager.grow(sequence):
            victims = [s for s in self.running[1:] if not s.is_protected]
            if not victims:
                return  # those that hold the blocks are about to progress: wait a step
            victim = victims[-1]
            if victim.num_flights:
                self.lacks_blocks = True
                return
            self._preempt(victim)
            if victim is sequence:
                return

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.block_manager.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.is_protected = True
        sequence.journey.num_preemptions += 1
        self._join_queue(sequence)
        self.num_preemptions += 1

    def _append_chunk(self, sketch: _Sketch, sequence: Sequence) -> None:
        """As much of the sequence as the budget and the pace allow."""
        count = sequence.num_uncomputed_tokens
        room = sketch.room(sequence.num_computed_tokens)
        if count > room:
            end = sequence.num_computed_tokens + room
            count = end - end % self._chunk_unit - sequence.num_computed_tokens
        if count <= 0:
            return
        sketch.append(ScheduledSequence.next_of(sequence, count))
        digest = self.block_manager.next_block(sequence)
        if digest is not None:
            sketch.blocks.add(digest)


def _with_drafts(
    entry: ScheduledSequence, drafts: Mapping[Sequence, tuple[int, ...]]
) -> ScheduledSequence:
    return replace(entry, drafts=drafts[entry.sequence]) if entry.sequence in drafts else entry


def _work_of(entries: Collection[ScheduledSequence]) -> Work:
    spans = [(entry.first, entry.num_tokens) for entry in entries]
    for entry in entries:
        if entry.drafts:  # a row for each, which costs what a decode's costs
            spans += ((entry.span.stop + number, 1) for number in range(len(entry.drafts)))
    return Work.of(spans)
