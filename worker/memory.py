"""How much memory the process may use, and how much of it keys and values get."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from ..shared.errors import ModelError
from .attention.backend import AttentionShape
from .attention.native import LANES

CACHE_SHARE = 0.25  # of the memory the process may use, at most
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usable_memory_bytes() -> int:
    """Physical memory, or the control group's limit where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such group, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def block_bytes(shape: AttentionShape, block_size: int, item_bytes: int) -> int:
    """Keys and values of one block in all layers; values are padded to whole vectors."""
    padded_dim = -(-shape.head_dim // LANES) * LANES
    dims = shape.head_dim + padded_dim
    return shape.num_layers * shape.num_kv_heads * dims * block_size * item_bytes


def num_cache_blocks(
    bytes_per_block: int, blocks_per_sequence: int, max_num_seqs: int, cache_bytes: int
) -> int:
    """What all sequences need at their longest, within `cache_bytes`.

    Raises ModelError when not even one sequence of the longest kind fits.
    """
    num_blocks = min(max_num_seqs * blocks_per_sequence, cache_bytes // bytes_per_block)
    if num_blocks < blocks_per_sequence:
        raise ModelError(
            f"one sequence of the longest kind needs {blocks_per_sequence * bytes_per_block:,} "
            f"bytes of KV cache and only {cache_bytes:,} are allowed: lower --max-model-len or "
            "raise --kv-cache-bytes"
        )
    return num_blocks


def keep_freed_memory() -> None:
    """glibc would give large temporaries back and fault them in again at every step (measured:
    a 38 MB gather 12.9 ms, then 1.4 ms). Elsewhere nothing happens."""
    trim_threshold, mmap_threshold = -1, -3
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 0x7FFFFFFF)
