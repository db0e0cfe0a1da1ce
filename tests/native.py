"""Marks for what kernels of our own can do on this machine."""

from __future__ import annotations

import pytest
import torch

from chairlift.worker.kernels.compiler import NativeKernelError
from chairlift.worker.models.native_linear import Abilities, abilities


def able() -> Abilities:
    """Nothing where there is no compiler."""
    try:
        return abilities()
    except NativeKernelError:
        return frozenset()


def needs_our_products(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    """Of matrices of all these types."""
    there = {dtype for dtype, _ in able()}
    return pytest.mark.skipif(not there >= {*dtypes}, reason="no such products of our own here")
