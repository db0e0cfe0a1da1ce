"""Which tokens of which sequences the next step computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

from .block_manager import BlockManager
from .sequence import Sequence, Status


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The step computes the sequence's next `num_tokens` tokens, `num_prompt_tokens` of them the
    prompt's. If that catches up with all it has, the next one `is_sampled`."""

    sequence: Sequence
    num_tokens: int
    num_prompt_tokens: int
    is_sampled: bool

    @classmethod
    def next_of(cls, sequence: Sequence, num_tokens: int) -> ScheduledSequence:
        num_prompt_tokens_left = sequence.num_prompt_tokens - sequence.num_computed_tokens
        return cls(
            sequence,
            num_tokens,
            num_prompt_tokens=max(0, min(num_tokens, num_prompt_tokens_left)),
            is_sampled=num_tokens == sequence.num_uncomputed_tokens,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one step.

    Only static batching has padding: rows that belong to no sequence.
    """

    entries: tuple[ScheduledSequence, ...]
    num_padding_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.entries)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences whose next token the step yields, in order."""
        return [entry.sequence for entry in self.entries if entry.is_sampled]


class Scheduler(ABC):
    """Owns the waiting and the running sequences.

    Every sequence is in exactly one of `waiting`, `suspects` and `running` from `add` to `remove`.
    A suspect, which may have killed a worker, has to run alone until it has caught up and a token
    was sampled; then it is one of the running. Only those whose status is RUNNING hold blocks.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self.num_waiting_tokens = 0  # of the waiting and the suspects
        self.waiting: deque[Sequence] = deque()
        self.suspects: deque[Sequence] = deque()
        self.running: list[Sequence] = []

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
        sequence.status = Status.WAITING
        self._queue_of(sequence).append(sequence)
        self.num_waiting_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Finished or cancelled: at once and whole, whatever it was doing."""
        if sequence.status is Status.FINISHED:
            return
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._leave_queue(sequence)
        self.block_manager.release(sequence)
        sequence.status = Status.FINISHED

    def commit(self, plan: Plan) -> None:
        """The plan has been computed."""
        for entry in plan.entries:
            entry.sequence.num_computed_tokens += entry.num_tokens
            self.block_manager.commit(entry.sequence)
            if entry.is_sampled and entry.sequence.is_suspect:
                self._acquit(entry.sequence)

    def _acquit(self, suspect: Sequence) -> None:
        """It has run alone as long as it had to."""
        if suspect not in self.running:
            self._leave_queue(suspect)
            self.running.append(suspect)
        suspect.is_suspect = False

    def _admit(self, sequence: Sequence) -> bool:
        """From its queue to `running`, if its blocks and one for each other fit."""
        if not self._give_blocks(sequence):
            return False
        self._leave_queue(sequence)
        self.running.append(sequence)
        return True

    def _give_blocks(self, sequence: Sequence) -> bool:
        if not self.block_manager.admit(sequence, headroom=len(self.running)):
            return False
        if not sequence.is_protected:  # what a preempted one finds again is its own work
            num_computed, num_prompt = sequence.num_computed_tokens, sequence.num_prompt_tokens
            sequence.num_cached_tokens = min(num_computed, num_prompt)
        sequence.status = Status.RUNNING
        return True

    def _leave_queue(self, sequence: Sequence) -> None:
        self._queue_of(sequence).remove(sequence)
        self.num_waiting_tokens -= sequence.num_tokens

    def _queue_of(self, sequence: Sequence) -> deque[Sequence]:
        return self.suspects if sequence.is_suspect else self.waiting


class ContinuousScheduler(Scheduler):
    """Continuous batching: arrivals board between two steps, finished ones leave at once.

    Each step gives every running sequence up to what it has not computed yet, within
    `max_num_batched_tokens`: first those that need one token, so that no prompt holds them up,
    then chunks of prompts that end on block boundaries, oldest first. (Iteration-level
    scheduling: Yu et al., OSDI 2022; chunked prefill beside decodes: Agrawal et al., OSDI 2024.)

    When blocks run out, the newest sequence is preempted: it gives up its blocks and waits at the
    head of the queue to be computed again. The oldest never is, and none twice before it has
    produced a token, so every sequence finishes.

    Suspects go one after the other, oldest first; their lone steps take turns with the common
    ones. The first has its blocks and a place among `max_num_seqs` as soon as there are any,
    before others board, and gives them up to nobody: it needs no more to be through.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        super().__init__(
            block_manager,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        self._is_lone_turn = True

    def plan(self) -> Plan:
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
        entries: list[ScheduledSequence] = []
        if self._has_lone:
            self._append_chunk(entries, self.suspects[0], self.max_num_batched_tokens)
        return entries

    def _common_step(self) -> list[ScheduledSequence]:
        entries = self._decodes()
        budget = self.max_num_batched_tokens - len(entries)
        for sequence in self.running:
            if sequence.num_uncomputed_tokens > 1:
                budget -= self._append_chunk(entries, sequence, budget)
        while self._may_board():
            sequence = self.waiting[0]
            if not self._has_first_chunk(sequence, budget) or not self._admit(sequence):
                break
            budget -= self._append_chunk(entries, sequence, budget)
        return entries

    def _may_board(self) -> bool:
        """Ahead of a suspect that lacks room, only those board that gave theirs up."""
        if not self.waiting or len(self.running) + self._has_lone >= self.max_num_seqs:
            return False
        return not self.suspects or self._has_lone or self.waiting[0].is_protected

    def _has_first_chunk(self, sequence: Sequence, budget: int) -> bool:
        """Whoever boards without a chunk holds blocks for nothing, and has looked up the prefix
        cache before those ahead of it have filled it."""
        return budget >= min(sequence.num_tokens, self.block_manager.block_size)

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
        """One more block if needed, taken from newer sequences; itself last of all."""
        while not self.block_manager.grow(sequence):
            victims = [s for s in self.running[1:] if not s.is_protected]
            if not victims:
                return  # those that hold the blocks are about to progress: wait a step
            victim = victims[-1]
            self._preempt(victim)
            if victim is sequence:
                return

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.block_manager.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.is_protected = True
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_waiting_tokens += sequence.num_tokens
        self.num_preemptions += 1

    def _append_chunk(
        self, entries: list[ScheduledSequence], sequence: Sequence, budget: int
    ) -> int:
        """As much of the sequence as the budget allows; the number of tokens taken."""
        count = sequence.num_uncomputed_tokens
        if count > budget:
            end = sequence.num_computed_tokens + budget
            count = end - end % self.block_manager.block_size - sequence.num_computed_tokens
        if count <= 0:
            return 0
        entries.append(ScheduledSequence.next_of(sequence, count))
        return count
