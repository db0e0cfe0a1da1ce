"""The sampler's kernels as they run: configurations and types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...shared.sampling_params import MAX_LOGIT_BIAS
from . import logit_kernels, sampling_kernels, token_count_kernels
from .sampling_state import MAX_STOPS
from .variant import Variant

COUNT_TILE = 256
CLEAR_TILE = 4096
_LOGITS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_OTHERS = {
    "*fp32": "floats biases adjusted block_maxima split_maxima split_sums split_best split_scores "
    "highest normalisers logprobs",
    "*i64": "split_masses limits",
    "i32": "table_row num_prompt_tokens num_tokens",
}
_TYPES = {name: kind for kind, names in _OTHERS.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class SamplingShape:
    """How a row is cut: powers of two, the block dividing the split. Other sizes, the same tokens;
    only log probabilities may differ in their last bit."""

    vocab_size: int
    split: int = 2048  # tokens per program
    block: int = 128  # tokens per maximum that bounds a top_k
    capacity: int = 8192  # candidates that a row can list; where there are more, all are read
    tile: int = 512  # candidates compared at a time
    pivots: int = 16  # ... with as many ranks

    @property
    def num_splits(self) -> int:
        return -(-self.vocab_size // self.split)

    @property
    def num_blocks(self) -> int:
        return self.num_splits * (self.split // self.block)

    @property
    def id_bits(self) -> int:
        return max(1, (self.vocab_size - 1).bit_length())


@dataclass(frozen=True, slots=True)
class SamplingVariants:
    """In the order of their launches."""

    statistics: Variant
    merge: Variant
    scan: Variant
    choose: Variant


@dataclass(frozen=True, slots=True)
class CountVariants:
    clear: Variant
    sequence: Variant
    sampled: Variant


def sampling_variants(shape: SamplingShape, dtype: torch.dtype) -> SamplingVariants:
    """For logits of float32, float16 or bfloat16."""
    sizes = {"VOCAB": shape.vocab_size, "NUM_SPLITS": shape.num_splits}
    padded = {"PADDED_SPLITS": _power_of_two(shape.num_splits)}
    ids = {"MAX_STOPS": MAX_STOPS, "MAX_BIASES": MAX_LOGIT_BIAS}
    cut = {**sizes, "SPLIT": shape.split}
    blocks = {"NUM_BLOCKS": shape.num_blocks, "PADDED_BLOCKS": _power_of_two(shape.num_blocks)}
    lists = {"CAPACITY": shape.capacity}
    ranks = {"ID_BITS": shape.id_bits, "TILE": shape.tile, "PIVOTS": shape.pivots}
    return SamplingVariants(
        _variant(logit_kernels.statistics_kernel, {**cut, "BLOCK": shape.block, **ids}, 4, dtype),
        _variant(logit_kernels.merge_kernel, {**sizes, **blocks, **padded}, 4),
        _variant(sampling_kernels.scan_kernel, {**cut, **lists}, 4, dtype),
        _variant(sampling_kernels.choose_kernel, {**sizes, **padded, **lists, **ranks}, 8, dtype),
    )


def count_variants(vocab_size: int) -> CountVariants:
    counted = {"VOCAB": vocab_size, "TILE": COUNT_TILE}
    return CountVariants(
        _variant(
            token_count_kernels.clear_counts_kernel, {"VOCAB": vocab_size, "TILE": CLEAR_TILE}, 4
        ),
        _variant(token_count_kernels.count_sequence_kernel, counted, 4),
        _variant(token_count_kernels.count_sampled_kernel, counted, 4),
    )


def _variant(
    kernel: Any, constants: Mapping[str, int], num_warps: int, dtype: torch.dtype | None = None
) -> Variant:
    """What has a name has the same type in all kernels: int32 where nothing else is said."""
    types = {**_TYPES, "logits": _LOGITS[dtype]} if dtype is not None else _TYPES
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "*i32") for name in names}
    return Variant(kernel.__name__, kernel, signature, constants, num_warps)


def _power_of_two(number: int) -> int:
    """The lowest that is not below."""
    return 1 << (number - 1).bit_length()
