"""What the host says of a step, in one copy."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import RequestTables, StepArrays, put
from .rows import News
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
class SentStep:
    """On the device, int32. The first `num_sampled` sequences are those that sample there."""

    arrays: StepArrays
    num_sampled: torch.Tensor  # [1]
    is_sampled: torch.Tensor  # [max_num_seqs]


class Packets:
    """Makes them, and sends them to `sent`, whose place does not change, and the tables."""

    def __init__(
        self,
        max_num_seqs: int,
        tables: RequestTables,
        transfers: Transfers,
        device: torch.device,
    ) -> None:
        self._tables = tables
        self._transfers = transfers
        self._width = width = -(-(max_num_seqs + 1) // ALIGNMENT) * ALIGNMENT
        size = ALIGNMENT + NUM_COLUMNS * width
        self._head = head = torch.zeros(size, dtype=torch.int32, device=device)
        parts, count = head[ALIGNMENT:].view(NUM_COLUMNS, width), max_num_seqs
        arrays = StepArrays(head[:1], parts[0, : count + 1], parts[1, :count], parts[2, :count])
        self.sent = SentStep(arrays, head[1:2], parts[3, :count])

    def send(self, rows: list[RowOfStep], num_sampled: int, news: Collection[News]) -> None:
        """`sent` and the tables have it before anything that is launched later."""
        head = np.zeros(len(self._head), dtype=np.int32)
        head[0], head[1] = len(rows), num_sampled
        columns = head[ALIGNMENT:].reshape(NUM_COLUMNS, self._width)
        starts, firsts, table_rows, flags = columns
        starts[1 : len(rows) + 1] = np.cumsum([row.num_rows for row in rows])
        firsts[: len(rows)] = [row.first_position for row in rows]
        table_rows[: len(rows)] = [row.table_row for row in rows]
        flags[:num_sampled] = 1
        tokens, blocks = self._token_news(news), self._block_news(news)
        sent = self._transfers.to_device(np.concatenate((head, *tokens, *blocks)))
        sizes = [len(part) for part in (head, *tokens, *blocks)]
        new_head, *places = torch.split(sent, sizes)
        self._head.copy_(new_head)
        put(self._tables.token_table, places[0], places[1])
        put(self._tables.block_tables, places[2], places[3])

    def _token_news(self, news: Collection[News]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        width = self._tables.token_table.shape[1]
        return _places([(n.row * width + n.first_token, n.token_ids) for n in news if n.token_ids])

    def _block_news(self, news: Collection[News]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        width = self._tables.block_tables.shape[1]
        return _places([(n.row * width + n.first_block, n.blocks) for n in news if n.blocks])


def _places(runs: list[tuple[int, list[int]]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where numbers go in a flat table, and the numbers, of runs that begin at a place each."""
    places = [np.arange(start, start + len(numbers)) for start, numbers in runs]
    values = [np.array(numbers, dtype=np.int64) for _, numbers in runs]
    nothing = np.empty(0, dtype=np.int64)
    return (
        np.concatenate([nothing, *places]).astype(np.int32),
        np.concatenate([nothing, *values]).astype(np.int32),
    )
