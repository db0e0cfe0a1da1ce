"""What a step's kernels of attention have to do, listed on the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .attention_variants import AttentionVariants
from .paged_batch import PagedBatch
from .work_list_kernels import CHUNK_FIELDS, DECODE_FIELDS, MERGE_FIELDS, NUM_COUNTS

NO_WINDOW = 2**30  # a window that reaches all the way back


@dataclass(frozen=True, slots=True)
class WorkList:
    """Of all layers with one window; int32, refilled by every step."""

    window: int
    counts: torch.Tensor  # [NUM_COUNTS]
    decode_items: torch.Tensor  # [capacity, DECODE_FIELDS]
    chunk_items: torch.Tensor  # [capacity, CHUNK_FIELDS]
    merge_items: torch.Tensor  # [capacity, MERGE_FIELDS]


class WorkLists:
    """Owns the lists of every window that a model's layers have, and fills them on the device."""

    def __init__(
        self,
        windows: Iterable[int | None],
        variants: AttentionVariants,
        max_num_seqs: int,
        num_programs: int,
        device: torch.device,
    ) -> None:
        """`num_programs`: that decode, among which splits are dealt out."""
        distinct = list(dict.fromkeys(windows))
        reaches = [NO_WINDOW if window is None else window for window in distinct]

        def lists(*size: int) -> torch.Tensor:
            return torch.zeros(len(distinct), *size, dtype=torch.int32, device=device)

        self._variants, self._max_num_seqs = variants, max_num_seqs
        self._num_programs = num_programs
        self._windows = torch.tensor(reaches, dtype=torch.int32, device=device)
        self._counts = lists(NUM_COUNTS.value)
        self._decode_items = lists(variants.decode_capacity, DECODE_FIELDS.value)
        self._chunk_items = lists(variants.chunk_capacity, CHUNK_FIELDS.value)
        self._merge_items = lists(variants.merge_capacity, MERGE_FIELDS.value)
        parts = (self._counts, self._decode_items, self._chunk_items, self._merge_items)
        self._by_window = {
            window: WorkList(reaches[index], *(part[index] for part in parts))
            for index, window in enumerate(distinct)
        }

    def of(self, window: int | None) -> WorkList:
        return self._by_window[window]

    def fill(self, paged: PagedBatch) -> None:
        """Reads nothing on the host: a graph may have it in it."""
        self._variants.plan[(self._max_num_seqs, len(self._windows))](
            paged.num_sequences,
            paged.query_starts,
            paged.context_lens,
            paged.table_rows,
            self._windows,
            self._counts,
            self._decode_items,
            self._chunk_items,
            self._merge_items,
            self._num_programs,
        )
