"""Static batching, the measuring stick: what serving looked like before continuous batching."""

from __future__ import annotations

from .scheduler import Plan, ScheduledSequence, Scheduler


class StaticScheduler(Scheduler):
    """Takes up to `max_num_seqs` waiting sequences and lets nobody else on until all are done.

    As in a rectangular batch, every prompt costs as much as the longest, and the row of a finished
    member goes on, at the length of the longest, until the last one is done. Attention over the
    padding of prompts and of running rows is left out, which flatters static batching a little.
    """

    _num_members = 0

    def plan(self) -> Plan:
        if self.running:
            return self._decode_step()
        self._board()
        lengths = [sequence.num_uncomputed_tokens for sequence in self.running]
        entries = [ScheduledSequence.next_of(s, s.num_uncomputed_tokens) for s in self.running]
        padding = self._num_members * max(lengths, default=0) - sum(lengths)
        return Plan(tuple(entries), num_padding_tokens=padding)

    def _decode_step(self) -> Plan:
        for sequence in self.running:
            has_grown = self.block_manager.grow(sequence)
            assert has_grown, "a member's blocks are counted before it boards"
        entries = [ScheduledSequence.next_of(sequence, 1) for sequence in self.running]
        return Plan(tuple(entries), num_idle_rows=self._num_members - len(entries))

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
        self._num_members = len(self.running)
