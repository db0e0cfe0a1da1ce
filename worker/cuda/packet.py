"""What the host says of a step, in one copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import StepArrays, put
from .transfers import Transfers

ALIGNMENT = 4  # numbers: 16 bytes, as kernels load them
NUM_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class RowOfStep:
    """One sequence's part of a step."""

    table_row: int
    first_position: int  # how many of its tokens earlier steps have computed
    num_rows: int


@dataclass(frozen=True, slots=True)
class Update:
    """Numbers that a row of a table has from `first` on."""

    table: torch.Tensor  # int32 [num_tables, width], contiguous
    row: int
    first: int
    numbers: Sequence[int] | NDArray[np.int32]

    @property
    def place(self) -> int:
        """In the flat table."""
        return self.row * self.table.shape[1] + self.first


@dataclass(frozen=True, slots=True)
class SentStep:
    """On the device, int32. The first `num_sampled` sequences are those that sample there."""

    arrays: StepArrays
    num_sampled: torch.Tensor  # [1]
    is_sampled: torch.Tensor  # [max_num_seqs]


class Packets:
    """Makes them, and sends them to `sent`, whose place does not change, and the tables."""

    def __init__(self, max_num_seqs: int, transfers: Transfers, device: torch.device) -> None:
        self._transfers = transfers
        self._width = width = -(-(max_num_seqs + 1) // ALIGNMENT) * ALIGNMENT
        size = ALIGNMENT + NUM_COLUMNS * width
        self._head = head = torch.zeros(size, dtype=torch.int32, device=device)
        parts, count = head[ALIGNMENT:].view(NUM_COLUMNS, width), max_num_seqs
        arrays = StepArrays(head[:1], parts[0, : count + 1], parts[1, :count], parts[2, :count])
        self.sent = SentStep(arrays, head[1:2], parts[3, :count])

    def send(self, rows: list[RowOfStep], num_sampled: int, updates: Iterable[Update]) -> None:
        """`sent` and the tables have it before anything that is launched later."""
        head = np.zeros(len(self._head), dtype=np.int32)
        head[0], head[1] = len(rows), num_sampled
        columns = head[ALIGNMENT:].reshape(NUM_COLUMNS, self._width)
        starts, firsts, table_rows, flags = columns
        starts[1 : len(rows) + 1] = np.cumsum([row.num_rows for row in rows])
        firsts[: len(rows)] = [row.first_position for row in rows]
        table_rows[: len(rows)] = [row.table_row for row in rows]
        flags[:num_sampled] = 1
        by_table: dict[int, list[Update]] = {}
        for update in updates:
            by_table.setdefault(update.table.data_ptr(), []).append(update)
        parts = [head, *(part for group in by_table.values() for part in _flat(group))]
        sent = self._transfers.to_device(np.concatenate(parts))
        new_head, *rest = torch.split(sent, [len(part) for part in parts])
        self._head.copy_(new_head)
        for group, places, numbers in zip(by_table.values(), rest[::2], rest[1::2], strict=True):
            put(group[0].table, places, numbers)


def _flat(updates: Sequence[Update]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Places in the flat table, and the numbers that go there."""
    places = [np.arange(each.place, each.place + len(each.numbers)) for each in updates]
    numbers = [np.asarray(each.numbers) for each in updates]
    return np.concatenate(places).astype(np.int32), np.concatenate(numbers).astype(np.int32)
