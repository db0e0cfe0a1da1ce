"""The sampler of a worker on a GPU: buffers and launches. Reads no result and never waits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .sampling_state import SamplingState
from .sampling_variants import (
    CLEAR_TILE,
    COUNT_TILE,
    SamplingShape,
    SamplingVariants,
)


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
        device = state.floats.device
        num_splits = shape.num_splits

        def new(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(max_num_rows, *size, dtype=dtype, device=device)

        self.rows = SampledRows(new(), new(), new(dtype=torch.float32))
        self.limits = new(dtype=torch.int64)  # last rank that was kept, where something filters
        self.num_candidates = new()  # that were considered there
        self._adjusted = new(shape.vocab_size, dtype=torch.float32)
        self._block_maxima = new(shape.num_blocks, dtype=torch.float32)
        self._split_maxima = new(num_splits, dtype=torch.float32)
        self._split_sums = new(num_splits, dtype=torch.float32)
        self._split_best = new(num_splits, dtype=torch.float32)
        self._split_tokens = new(num_splits)
        self._split_masses = new(num_splits, dtype=torch.int64)
        self._highest, self._normalisers = new(dtype=torch.float32), new(dtype=torch.float32)
        self._bounds = new()
        self._candidates = new(shape.capacity)

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
        num_rows, num_splits = len(logits), self.shape.num_splits
        state, rows = self.state, self.rows
        params = state.floats, state.integers
        self._kernels.statistics[(num_splits, num_rows)](
            logits,
            num_valid,
            table_rows,
            *params,
            state.stop_ids,
            state.bias_ids,
            state.biases,
            state.counts,
            self._adjusted,
            self._block_maxima,
            self._split_maxima,
            self._split_sums,
            self._split_best,
            self._split_tokens,
        )
        self._kernels.merge[(num_rows,)](
            num_valid,
            table_rows,
            *params,
            self._block_maxima,
            self._split_maxima,
            self._split_sums,
            self._split_best,
            self._split_tokens,
            self._highest,
            self._normalisers,
            self._bounds,
            self.num_candidates,
            rows.token_ids,
            rows.is_number,
        )
        self._kernels.scan[(num_splits, num_rows)](
            logits,
            num_valid,
            table_rows,
            num_drafts,
            *params,
            self._adjusted,
            self._highest,
            self._bounds,
            rows.is_number,
            self._split_best,
            self._split_tokens,
            self._split_masses,
            self.num_candidates,
            self._candidates,
        )
        self._kernels.choose[(num_rows,)](
            logits,
            num_valid,
            table_rows,
            num_drafts,
            *params,
            self._adjusted,
            self._highest,
            self._normalisers,
            self._bounds,
            rows.is_number,
            self._split_best,
            self._split_tokens,
            self._split_masses,
            self.num_candidates,
            self._candidates,
            self.limits,
            rows.token_ids,
            rows.logprobs,
        )
        return rows

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
