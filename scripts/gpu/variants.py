"""Every kernel that the worker launches, for a model: one line for each part of the GPU path."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch

from chairlift.worker.cuda.variant import Variant

from .shapes import ModelShape

ALL = f"{__name__}:all_variants"


def all_variants(model: ModelShape, dtype: torch.dtype) -> Iterator[Variant]:
    """What docs/gpu.md lists; no two have the same name."""
    yield from ()


def variants_of(path: str, model: ModelShape, dtype: torch.dtype) -> list[Variant]:
    """Of the function that `path` names, as "gpu.variants:all_variants"."""
    module, _, function = path.partition(":")
    return list(getattr(importlib.import_module(module), function)(model, dtype))
