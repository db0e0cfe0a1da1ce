"""Which attention a worker on the CPU has: the kernel of our own, else torch's."""

from __future__ import annotations

from typing import Any, Literal

import structlog
import torch

from ..batch import Batch, Segment
from ..kernels.compiler import NativeKernelError
from .backend import AttentionBackend, AttentionShape
from .cpu import TorchCpuAttention
from .native import DTYPES, MAX_HEAD_DIM, NativeCpuAttention
from .reference import ReferenceAttention

AttentionName = Literal["auto", "native", "torch"]

log = structlog.get_logger(__name__)

NUM_TRIAL_BLOCKS = 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def cpu_attention(
    name: AttentionName, shape: AttentionShape, num_blocks: int, dtype: torch.dtype
) -> AttentionBackend[Any]:
    """Raises NativeKernelError when it has to be the native one and can't."""
    if name != "torch":
        try:
            _check(shape, dtype)
            return NativeCpuAttention(shape, num_blocks, dtype)
        except NativeKernelError as error:
            if name == "native":
                raise
            log.warning("attention without the native kernel, which is slower", why=str(error))
    return TorchCpuAttention(shape, num_blocks, dtype)


def _check(shape: AttentionShape, dtype: torch.dtype) -> None:
    """That the kernel, as this machine's compiler made it, computes attention."""
    if dtype not in DTYPES or shape.head_dim > MAX_HEAD_DIM:
        raise NativeKernelError(f"it knows no {dtype} with a head_dim of {shape.head_dim}")
    found = _attended(NativeCpuAttention(shape, NUM_TRIAL_BLOCKS, dtype), shape, dtype)
    expected = _attended(ReferenceAttention(shape, NUM_TRIAL_BLOCKS), shape, dtype)
    difference = (found.double() - expected.double()).abs().max().item()
    if not difference < TOLERANCE[dtype]:
        raise NativeKernelError(f"compiled here it is wrong by {difference:g}")


def _attended(
    backend: AttentionBackend[Any], shape: AttentionShape, dtype: torch.dtype
) -> torch.Tensor:
    """Of a chunk beside a decode."""
    generator = torch.Generator().manual_seed(0)

    def random(num_heads: int) -> torch.Tensor:
        size = (batch.num_tokens, num_heads, shape.head_dim)
        return torch.randn(size, generator=generator).to(dtype)

    chunk, decode = Segment(0, 40, 40, [3, 1]), Segment(40, 1, 1, [0])
    slots = torch.cat((torch.arange(96, 128), torch.arange(32, 40), torch.arange(1)))
    unused = torch.zeros_like(slots)
    batch = Batch(unused, unused, slots, unused[:0], (chunk, decode))
    prepared = backend.prepare(batch)
    backend.write(0, random(shape.num_kv_heads), random(shape.num_kv_heads), prepared)
    return backend.attend(0, random(shape.num_heads), prepared)
