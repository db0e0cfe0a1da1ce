"""The sampler of a worker on a GPU: buffers and launches. Reads no result and never waits."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from .sampling_state import SamplingState
from .sampling_variants import CLEAR_TILE, COUNT_TILE, SamplingShape, SamplingVariants


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Results on the device; of padding rows whatever was there before."""

    token_ids: torch.Tensor  # int32 [max_num_rows], 0 where there is no number
    is_number: torch.Tensor  # int32 [max_num_rows], 0 where the model's numbers are none
    logprobs: torch.Tensor  # float32 [max_num_rows], of the model's logits as they came


class GpuSampler:
    """Owns what its launches hand to one another. All of it is allocated once: captured graphs
    point at it."""

    def __init__(
        self,
        shape: SamplingShape,
        max_num_rows: int,
        state: SamplingState,
        dtype: torch.dtype,
    ) -> None:
        self.shape = shape
        self.state = state
        self._max_num_rows = max_num_rows
        self._kernels = SamplingVariants.of(shape, dtype)
        device, num_splits = state.floats.device, shape.num_splits

        def new(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(max_num_rows, *size, dtype=dtype, device=device)

        self.rows = rows = SampledRows(new(), new(), new(dtype=torch.float32))
        self.limits = new(dtype=torch.int64)  # last rank that was kept, where something filters
        self.num_candidates = new()  # that were considered there
        split_best = new(num_splits, dtype=torch.float32)
        self._tensors = {  # by the names that kernels have for them
            **{field.name: getattr(state, field.name) for field in fields(state)},
            **{field.name: getattr(rows, field.name) for field in fields(rows)},
            "limits": self.limits,
            "num_candidates": self.num_candidates,
            "adjusted": new(shape.vocab_size, dtype=torch.float32),
            "block_maxima": new(shape.num_blocks, dtype=torch.float32),
            "split_maxima": new(num_splits, dtype=torch.float32),
            "split_sums": new(num_splits, dtype=torch.float32),
            "split_best": split_best,
            "split_scores": split_best,  # of rows whose best is merged by then
            "split_tokens": new(num_splits),
            "split_masses": new(num_splits, dtype=torch.int64),
            "highest": new(dtype=torch.float32),
            "normalisers": new(dtype=torch.float32),
            "bounds": new(),
            "candidates": new(shape.capacity),
        }

    def sample(
        self,
        logits: torch.Tensor,
        num_valid: torch.Tensor,
        table_rows: torch.Tensor,
        num_drafts: torch.Tensor,
    ) -> SampledRows:
        """Chooses a token for each of the first `num_valid` [1] rows of contiguous logits
        [num_rows, vocab_size], which stay as they are; a row's parameters are those of
        `table_rows` [num_rows], its output index is that table row's number of output tokens and
        its `num_drafts` [num_rows]. All int32."""
        assert logits.is_contiguous() and len(logits) <= self._max_num_rows
        kernels, splits, rows = self._kernels, (self.shape.num_splits, len(logits)), (len(logits),)
        given = {"logits": logits, "num_valid": num_valid, "table_rows": table_rows}
        tensors = {**self._tensors, **given, "num_drafts": num_drafts}
        for kernel, grid in (
            (kernels.statistics, splits),
            (kernels.merge, rows),
            (kernels.scan, splits),
            (kernels.choose, rows),
        ):
            kernel[grid](*(tensors[name] for name in kernel.signature))
        return self.rows

    def advance(self, num_valid: torch.Tensor, table_rows: torch.Tensor) -> None:
        """Makes what `sample` chose last their table rows' output: their counts and their numbers
        of output tokens. Rows without a token stay as they are."""
        grid = (-(-len(table_rows) // COUNT_TILE),)
        rows, state = self.rows, self.state
        self._kernels.advance[grid](
            state.counts, state.integers, num_valid, table_rows, rows.token_ids, rows.is_number
        )

    def start(self, table_row: int, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
        """Counts a sequence's tokens, int32 [num_tokens] on the device, in place of whatever was
        counted in its table row. Only penalties need it."""
        counts, num_tokens = self.state.counts, len(token_ids)
        self._kernels.clear[(-(-self.shape.vocab_size // CLEAR_TILE),)](counts, table_row)
        if num_tokens:
            grid = (-(-num_tokens // COUNT_TILE),)
            self._kernels.count[grid](counts, table_row, token_ids, num_prompt_tokens, num_tokens)
