"""The rows that requests have in a device's tables, and what the device knows of them."""

from __future__ import annotations

from collections.abc import Iterator

from ..scheduler import ScheduledSequence
from ..sequence import Sequence, Status
from .inputs import RequestTables
from .packet import Update


class Row:
    """What the device knows of one sequence, as long as that keeps its blocks."""

    def __init__(self, number: int, sequence: Sequence) -> None:
        self.number = number
        self.block_table = sequence.block_table  # another list when it has lost its blocks
        self.num_known_tokens = 0  # the device has the one before this place, or does not need it
        self._num_known_blocks = 0

    def updates_for(self, entry: ScheduledSequence, tables: RequestTables) -> Iterator[Update]:
        """Tokens and blocks that the entry's step needs; taken for granted from now on."""
        first = max(entry.first, self.num_known_tokens)
        if first < entry.span.stop:
            tokens = entry.sequence.token_ids[first : entry.span.stop]
            yield Update(tables.token_table, self.number, first, tokens)
            self.num_known_tokens = entry.span.stop
        if self._num_known_blocks < len(self.block_table):
            first, blocks = self._num_known_blocks, self.block_table[self._num_known_blocks :]
            yield Update(tables.block_tables, self.number, first, blocks)
            self._num_known_blocks += len(blocks)


class Rows:
    """Owns who has which row: a sequence from its first step until it has ended or lost its blocks,
    and the last of its steps has landed."""

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows - 1, -1, -1))
        self._rows: dict[Sequence, Row] = {}

    def sweep(self) -> None:
        """Takes back the rows of those that have none to need."""
        for sequence, row in [*self._rows.items()]:
            is_over = sequence.status is Status.FINISHED and not sequence.num_flights
            if is_over or row.block_table is not sequence.block_table:
                self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """If it has a row; the next one is told everything anew."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            self._free.append(row.number)

    def find(self, sequence: Sequence) -> Row | None:
        return self._rows.get(sequence)

    def take(self, sequence: Sequence) -> Row:
        """For one that has none, after a sweep."""
        row = Row(self._free.pop(), sequence)
        self._rows[sequence] = row
        return row
