"""The sampler's kernels as they run: configurations and types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ...shared.sampling_params import MAX_LOGIT_BIAS
from . import logit_kernels, sampling_kernels, token_count_kernels
from .pointers import pointer
from .sampling_state import MAX_STOPS
from .variant import Variant, next_power_of_2

COUNT_TILE = 256
CLEAR_TILE = 4096
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
    """The first four are launched one after another; the others keep the counts."""

    statistics: Variant
    merge: Variant
    scan: Variant
    choose: Variant
    clear: Variant
    count: Variant
    advance: Variant

    @classmethod
    def of(cls, shape: SamplingShape, dtype: torch.dtype) -> SamplingVariants:
        """For logits of float32, float16 or bfloat16."""
        sizes = {"VOCAB": shape.vocab_size, "NUM_SPLITS": shape.num_splits}
        cut = {**sizes, "SPLIT": shape.split}
        block = {"BLOCK": shape.block}
        lists = {"MAX_STOPS": MAX_STOPS, "MAX_BIASES": MAX_LOGIT_BIAS}
        padded = {**sizes, "PADDED_SPLITS": next_power_of_2(shape.num_splits)}
        blocks = {
            "NUM_BLOCKS": shape.num_blocks,
            "PADDED_BLOCKS": next_power_of_2(shape.num_blocks),
        }
        listed = {"CAPACITY": shape.capacity}
        search = {"ID_BITS": shape.id_bits, "TILE": shape.tile, "PIVOTS": shape.pivots}
        counted = {"VOCAB": shape.vocab_size, "TILE": COUNT_TILE}
        cleared = {"VOCAB": shape.vocab_size, "TILE": CLEAR_TILE}
        return cls(
            statistics=_variant(logit_kernels.statistics_kernel, {**cut, **block, **lists}, dtype),
            merge=_variant(logit_kernels.merge_kernel, {**padded, **block, **blocks}),
            scan=_variant(sampling_kernels.scan_kernel, {**cut, **listed}, dtype),
            choose=_variant(
                sampling_kernels.choose_kernel, {**padded, **listed, **search}, dtype, num_warps=8
            ),
            clear=_variant(token_count_kernels.clear_counts_kernel, cleared),
            count=_variant(token_count_kernels.count_sequence_kernel, counted),
            advance=_variant(token_count_kernels.advance_kernel, counted),
        )


def sampling_variants(shape: SamplingShape, dtype: torch.dtype) -> Iterator[Variant]:
    """All that a sampler of this shape launches."""
    variants = SamplingVariants.of(shape, dtype)
    return (getattr(variants, field.name) for field in fields(variants))


def _variant(
    kernel: Any,
    constants: Mapping[str, int],
    logits: torch.dtype | None = None,
    num_warps: int = 4,
) -> Variant:
    """What has a name has the same type in all kernels: int32 where nothing else is said."""
    types = {**_TYPES, "logits": pointer(logits)} if logits is not None else _TYPES
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "*i32") for name in names}
    return Variant(kernel.__name__, kernel, signature, constants, num_warps)
