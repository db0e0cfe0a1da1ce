"""Static batching, the measuring stick: what serving looked like before continuous batching."""

from __future__ import annotations

from .block_manager import BlockManager
from .pace import Pace
from .scheduler import Plan, ScheduledSequence, Scheduler
from .sequence import Sequence, Status


class StaticScheduler(Scheduler):
    """Takes up to `max_num_seqs` waiting sequences and lets nobody else on until all are done.

    As in a rectangular batch, every prompt costs as much as the longest, and the row of a finished
    member goes on until the last one is done: its ghost keeps the blocks and takes one meaningless
    token a step. Attention over the padding of prompts is left out. A suspect is a batch of one.
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
        self._ghosts: list[Sequence] = []
        self._max_num_tokens = 0  # of the batch's longest member, when it ends

    def plan(self) -> Plan:
        if self.running:
            return self._decode_step()
        self._board()
        self._max_num_tokens = max((s.max_num_tokens for s in self.running), default=0)
        lengths = [sequence.num_uncomputed_tokens for sequence in self.running]
        entries = [ScheduledSequence.next_of(s, s.num_uncomputed_tokens) for s in self.running]
        padding = len(lengths) * max(lengths, default=0) - sum(lengths)
        return Plan(tuple(entries), num_padding_tokens=padding)

    def remove(self, sequence: Sequence) -> None:
        if sequence.status is not Status.RUNNING:
            super().remove(sequence)
            return
        self.running.remove(sequence)
        self._finish(sequence)
        self._ghosts.append(_ghost_of(sequence))
        if not self.running:
            for ghost in self._ghosts:
                self.block_manager.release(ghost)
            self._ghosts = []

    def advance(self, plan: Plan) -> None:
        super().advance(self._members(plan))  # what ghosts have computed is nobody's prefix
        for ghost in self._ghosts:
            ghost.num_computed_tokens += 1

    def land(self, plan: Plan) -> None:
        super().land(self._members(plan))

    def _members(self, plan: Plan) -> Plan:
        return Plan(tuple(entry for entry in plan.entries if entry.sequence not in self._ghosts))

    def _decode_step(self) -> Plan:
        for ghost in self._ghosts:
            if ghost.num_tokens < self._max_num_tokens:
                ghost.append(0)
            else:  # beyond that there may be no position
                ghost.num_computed_tokens -= 1
        rows = [*self.running, *self._ghosts]
        for sequence in rows:
            has_grown = self.block_manager.grow(sequence)
            assert has_grown, "a row's blocks are counted before it boards"
        return Plan(
            tuple(
                ScheduledSequence(
                    s, 1, 0, is_sampled=s in self.running, first=s.num_computed_tokens
                )
                for s in rows
            )
        )

    def _board(self) -> None:
        """In order, as long as a rectangle of their longest prompt and output fits."""
        manager = self.block_manager
        if self.suspects:
            self._admit(self.suspects[0])
            return
        longest_prompt = longest_output = 0
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            longest_prompt = max(longest_prompt, sequence.num_tokens)
            longest_output = max(longest_output, sequence.params.max_tokens)
            num_rows = len(self.running) + 1
            num_blocks = num_rows * manager.num_blocks_for(longest_prompt + longest_output)
            if num_blocks > manager.num_blocks and self.running:
                break
            if not self._admit(sequence):
                break


def _ghost_of(sequence: Sequence) -> Sequence:
    """Has the sequence's length and blocks, and no part in its answer."""
    num_tokens = max(1, sequence.num_computed_tokens)
    ghost = Sequence(sequence.request_id, [0] * num_tokens, sequence.params)
    ghost.num_computed_tokens = num_tokens
    ghost.finish = sequence.finish  # whatever becomes of the ghost, nobody waits for it
    ghost.block_table, sequence.block_table = sequence.block_table, []
    return ghost
