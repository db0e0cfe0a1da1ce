"""What a worker on the CPU computes with: the kernels of our own, else torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog
import torch

from ..attention.backend import AttentionBackend, AttentionShape, HeadNorm
from ..attention.cpu import TorchCpuAttention
from ..attention.native import DTYPES, MAX_HEAD_DIM, NativeCpuAttention
from ..attention.reference import ReferenceAttention
from ..batch import Batch, Segment
from ..models.native_operations import NativeOperations
from ..models.operations import Operations
from ..models.rope import Rope, RotaryTable
from .compiler import NativeKernelError, load_kernels

KernelsName = Literal["auto", "native", "torch"]
T = TypeVar("T")

log = structlog.get_logger(__name__)

NUM_TRIAL_BLOCKS = 8
TRIAL_ROWS, TRIAL_SIZE = 41, 200
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Kernels:
    """Everything that a forward pass takes besides matrix products."""

    attention: AttentionBackend[Any]
    operations: Operations


def ours_or(other: T, name: KernelsName, make_ours: Callable[[], T], warning: str) -> T:
    """Ours, unless torch's are asked for or there are none, which is warned of. Raises
    NativeKernelError when they have to be ours and can't."""
    if name == "torch":
        return other
    try:
        return make_ours()
    except NativeKernelError as error:
        if name == "native":
            raise
        log.warning(warning, why=str(error))
        return other


def check_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Raises NativeKernelError."""
    found, expected = found.double(), expected.double()
    difference = (found - expected).abs() / (1 + expected.abs())
    if not (greatest := difference.max().item()) < tolerance:
        raise NativeKernelError(f"compiled here, {what} are wrong by {greatest:g}")


def available_kernels(name: KernelsName) -> KernelsName:
    """torch's where ours can't be made. Raises NativeKernelError when they have to be ours."""

    def ours() -> KernelsName:
        load_kernels()
        return name

    return ours_or("torch", name, ours, "without kernels of our own: slower, and no speculation")


def cpu_kernels(
    name: KernelsName, shape: AttentionShape, num_blocks: int, dtype: torch.dtype
) -> Kernels:
    """Raises NativeKernelError when they have to be the native ones and can't."""

    def ours() -> Kernels | None:
        _check(shape, dtype)
        return Kernels(NativeCpuAttention(shape, num_blocks, dtype), NativeOperations())

    warning = "running without the native kernels, which is slower"
    found = ours_or(None, name, ours, warning)  # torch's has a pool too: made where it is needed
    return found or Kernels(TorchCpuAttention(shape, num_blocks, dtype), Operations())


def _check(shape: AttentionShape, dtype: torch.dtype) -> None:
    """That the kernels, as this machine's compiler made them, compute what they should."""
    if dtype not in DTYPES or shape.head_dim > MAX_HEAD_DIM:
        raise NativeKernelError(f"they know no {dtype} with a head_dim of {shape.head_dim}")
    native = Kernels(NativeCpuAttention(shape, NUM_TRIAL_BLOCKS, dtype), NativeOperations())
    reference = Kernels(ReferenceAttention(shape, NUM_TRIAL_BLOCKS), Operations())
    for found, expected in zip(_tried(native, dtype), _tried(reference, dtype), strict=True):
        check_close(found, expected, TOLERANCE[dtype], "they")


def _tried(kernels: Kernels, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """What they make of a chunk beside a decode, and of some rows."""
    attention, operations = kernels.attention, kernels.operations
    shape, generator = attention.shape, torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    chunk, decode = Segment(0, 40, 40, [3, 1]), Segment(40, 1, 1, [0])
    slots = torch.cat((torch.arange(96, 128), torch.arange(32, 40), torch.arange(1)))
    positions = torch.cat((torch.arange(40), torch.arange(1)))
    batch = Batch(positions, positions, slots, positions[:0], (chunk, decode))
    prepared = attention.prepare(batch)
    num_rotated = shape.num_heads + shape.num_kv_heads
    norm = HeadNorm(random(num_rotated, shape.head_dim), eps=1e-6)
    rotation = RotaryTable(Rope(10_000.0), shape.head_dim, 64).at(positions)
    qkv = random(batch.num_rows, (num_rotated + shape.num_kv_heads) * shape.head_dim)
    yield attention.attend(0, attention.write_rotated(0, qkv, norm, rotation, prepared), prepared)
    rows = random(TRIAL_ROWS, TRIAL_SIZE)
    yield operations.add_and_norm(rows, random(*rows.shape), random(TRIAL_SIZE), 1e-6)
    yield operations.silu_and_multiply(rows)
