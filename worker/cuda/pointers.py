"""How Triton writes the types of tensors that a kernel reads."""

from __future__ import annotations

import torch

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

DTYPES = tuple(_TYPES)


def pointer(dtype: torch.dtype) -> str:
    """The type of an argument that is a tensor of `dtype`, one of DTYPES."""
    return f"*{_TYPES[dtype]}"
