"""What a GPU's sampler knows of each sequence, by its table row; memory that outlives steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ...shared.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from . import sampling_columns as columns
from .packet import Update

MAX_STOPS = 256  # 128 of a request, and the model's
_FLOATS = {
    "temperature": columns.TEMPERATURE.value,
    "top_p": columns.TOP_P.value,
    "min_p": columns.MIN_P.value,
    "presence_penalty": columns.PRESENCE_PENALTY.value,
    "frequency_penalty": columns.FREQUENCY_PENALTY.value,
    "repetition_penalty": columns.REPETITION_PENALTY.value,
}


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Tensors on the device, written before steps and read by kernels.

    The counts are int32: atomic additions take no less, and 16 bits would overflow in a long
    output. For 256 sequences, who have 512 table rows, of a vocabulary of 152,000 that is 311 MB,
    which only rows with penalties read.
    """

    floats: torch.Tensor  # float32 [num_tables, NUM_FLOATS]
    integers: torch.Tensor  # int32 [num_tables, NUM_INTEGERS]
    stop_ids: torch.Tensor  # int32 [num_tables, MAX_STOPS], ascending
    bias_ids: torch.Tensor  # int32 [num_tables, MAX_LOGIT_BIAS], ascending
    biases: torch.Tensor  # float32 [num_tables, MAX_LOGIT_BIAS]
    counts: torch.Tensor  # int32 [num_tables, vocab_size]: outputs, and a bit for the prompt

    @classmethod
    def empty(cls, num_tables: int, vocab_size: int, device: torch.device) -> SamplingState:
        """All rows greedy and as the model wants them."""

        def zeros(width: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(num_tables, width, dtype=dtype, device=device)

        state = cls(
            floats=zeros(columns.NUM_FLOATS.value, torch.float32),
            integers=zeros(columns.NUM_INTEGERS.value),
            stop_ids=zeros(MAX_STOPS),
            bias_ids=zeros(MAX_LOGIT_BIAS),
            biases=zeros(MAX_LOGIT_BIAS, torch.float32),
            counts=zeros(vocab_size),
        )
        plain = torch.from_numpy(packed(SamplingParams(max_tokens=1, temperature=0.0)).floats)
        state.floats.copy_(plain)
        return state

    def updates(self, table_row: int, row: PackedParams) -> list[Update]:
        """A sequence's parameters; its counts are written by kernels."""
        written = (
            (self.floats, row.floats),
            (self.integers, row.integers),
            (self.stop_ids, row.stop_ids),
            (self.bias_ids, row.bias_ids),
            (self.biases, row.biases),
        )
        return [
            Update(table.view(torch.int32), table_row, 0, values.view(np.int32))
            for table, values in written
            if len(values)
        ]


@dataclass(frozen=True, slots=True)
class PackedParams:
    """One table row as it goes to the device."""

    floats: NDArray[np.float32]
    integers: NDArray[np.int32]
    stop_ids: NDArray[np.int32]
    bias_ids: NDArray[np.int32] = field(repr=False)
    biases: NDArray[np.float32] = field(repr=False)


def packed(
    params: SamplingParams, num_output_tokens: int = 0, eos_token_ids: Iterable[int] = ()
) -> PackedParams:
    """`eos_token_ids` are what min_tokens keeps away, besides the request's own."""
    floats = np.zeros(columns.NUM_FLOATS.value, dtype=np.float32)
    for name, column in _FLOATS.items():
        floats[column] = getattr(params, name)
    stops = sorted({*eos_token_ids, *params.stop_token_ids}) if params.min_tokens else []
    assert len(stops) <= MAX_STOPS
    order = sorted(params.logit_bias, key=lambda entry: entry[0])
    seed = np.array([params.seed], dtype=np.int64).view(np.int32)
    integers = np.zeros(columns.NUM_INTEGERS.value, dtype=np.int32)
    integers[columns.TOP_K.value] = params.top_k
    integers[columns.SEED_LOW.value] = seed[0]
    integers[columns.SEED_HIGH.value] = seed[1]
    integers[columns.NUM_OUTPUT_TOKENS.value] = num_output_tokens
    integers[columns.MIN_TOKENS.value] = params.min_tokens
    integers[columns.NUM_STOPS.value] = len(stops)
    integers[columns.NUM_BIASES.value] = len(order)
    return PackedParams(
        floats,
        integers,
        np.array(stops, dtype=np.int32),
        np.array([token_id for token_id, _ in order], dtype=np.int32),
        np.array([bias for _, bias in order], dtype=np.float32),
    )
