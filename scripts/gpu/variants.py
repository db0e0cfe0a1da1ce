"""Every kernel that the worker launches, for a model: one line for each part of the GPU path."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch

from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.cuda.attention_variants import TILE, attention_variants
from chairlift.worker.cuda.inputs import input_variants
from chairlift.worker.cuda.linear import linear_variants
from chairlift.worker.cuda.operations import operation_variants
from chairlift.worker.cuda.rotation import rotation_variants
from chairlift.worker.cuda.sampling_variants import SamplingShape, sampling_variants
from chairlift.worker.cuda.variant import Variant

from .shapes import ModelShape

MAX_NUM_SEQS = 256
ALL = f"{__name__}:all_variants"


def all_variants(model: ModelShape, dtype: torch.dtype, capability: int) -> Iterator[Variant]:
    """What docs/gpu.md lists, as a device of this capability has it; no two have the same name."""
    shape = _attention_shape(model)
    yield from attention_variants(shape, dtype, capability=capability)
    yield from rotation_variants(shape, TILE, dtype)
    yield from operation_variants(model.hidden_size, model.intermediate_size, dtype)
    columns = (model.hidden_size, model.num_heads * model.head_dim, model.intermediate_size)
    yield from linear_variants(columns, dtype)
    yield from linear_variants(columns[:1], dtype, has_bias=True)  # of Qwen2's qkv
    yield from input_variants(TILE, MAX_NUM_SEQS)
    yield from sampling_variants(SamplingShape(model.vocab_size), dtype)


def attention_alone(model: ModelShape, dtype: torch.dtype, capability: int) -> Iterator[Variant]:
    """What differs most between devices, in its tiles as well."""
    yield from attention_variants(_attention_shape(model), dtype, capability=capability)


def _attention_shape(model: ModelShape) -> AttentionShape:
    heads = (model.num_heads, model.num_kv_heads, model.head_dim)
    windows = (None,) * model.num_layers
    return AttentionShape(model.num_layers, *heads, model.head_dim**-0.5, windows)


def variants_of(path: str, model: ModelShape, dtype: torch.dtype, capability: int) -> list[Variant]:
    """Of the function that `path` names, as "gpu.variants:all_variants"."""
    module, _, function = path.partition(":")
    return list(getattr(importlib.import_module(module), function)(model, dtype, capability))
