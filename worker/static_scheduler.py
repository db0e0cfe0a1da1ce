"""Static batching, the measuring stick: what serving looked like before continuous batching."""

from __future__ import annotations

from .block_manager import BlockManager
from .scheduler import Plan, ScheduledSequence, Scheduler
from .sequence import Sequence, Status


class StaticScheduler(Scheduler):
    """Takes up to `max_num_seqs` waiting sequences and lets nobody else on until all are done.

    As in a rectangular batch, every prompt costs as much as the longest, and a finished member
    keeps its row and its blocks until the last one is done. Attention over the padding is left
    out, which flatters static batching a little.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        super().__init__(
            block_manager,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        self._finished: list[Sequence] = []  # members that still hold their blocks

    def plan(self) -> Plan:
        if self.running:
            return self._decode_step()
        self._board()
        lengths = [sequence.num_uncomputed_tokens for sequence in self.running]
        entries = [ScheduledSequence.next_of(s, s.num_uncomputed_tokens) for s in self.running]
        padding = len(lengths) * max(lengths, default=0) - sum(lengths)
        return Plan(tuple(entries), num_padding_tokens=padding)

    def remove(self, sequence: Sequence) -> None:
        """Out of the batch only with all the others."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            sequence.status = Status.FINISHED
            self._finished.append(sequence)
            if not self.running:
                self._release_all()
        else:
            super().remove(sequence)

    def _release_all(self) -> None:
        for sequence in self._finished:
            self.block_manager.release(sequence)
        self._finished = []

    def _decode_step(self) -> Plan:
        for sequence in self.running:
            has_grown = self.block_manager.grow(sequence)
            assert has_grown, "a member's blocks are counted before it boards"
        entries = [ScheduledSequence.next_of(sequence, 1) for sequence in self.running]
        return Plan(tuple(entries), finished=tuple(self._finished))

    def _board(self) -> None:
        """In arrival order, as long as all members fit even at their longest."""
        manager = self.block_manager
        num_blocks = 0
        while self.waiting and len(self.running) < self.max_num_seqs:
            num_blocks += manager.num_blocks_for(self.waiting[0].max_num_tokens + 1)
            is_alone = not self.running
            if num_blocks > manager.num_blocks and not is_alone:
                break
            if not self._admit(self.waiting[0]):
                break
