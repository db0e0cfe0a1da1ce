"""Attention of other libraries over the same queries, keys and values as ours: yardsticks.

FlashInfer compiles its kernels where they are first used, which takes minutes. To have that done
while something else is measured:

PYTHONPATH=scripts .venv/bin/python -m gpu.attention_peers --model Llama-3.1-8B
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.cuda.attention_variants import TILE

from .shapes import MODELS
from .timing import seconds_per_call

WORKSPACE_BYTES = 256 << 20
MAX_DIFFERENCE = 0.02  # of all outputs' norm: two that round to bfloat16 differ by less than 0.01
MAX_WORDS = 60  # characters of an error in a cell

LEGEND = (
    "ours / a peer: how many times as fast ours is, by the seconds of rows that decode and by the "
    "TFLOP/s attained in chunks; cuDNN computes a chunk with a past without a mask, and all of "
    "that is counted as its work"
)

Attend = Callable[[torch.Tensor], torch.Tensor]  # of a layer's pool, rows as ours


@dataclass(frozen=True, slots=True)
class Task:
    """What ours computes in each of some layers: equal sequences, of each the last rows."""

    shape: AttentionShape
    q: torch.Tensor  # [num_seqs * num_rows, num_heads, head_dim]
    pools: Sequence[torch.Tensor]  # of layers, [num_blocks, 2, num_kv_heads, 64, head_dim]
    tables: torch.Tensor  # [num_seqs, max_blocks], int32
    num_rows: int  # of each sequence
    context_len: int
    num_flops: int  # of a layer
    ours: torch.Tensor  # what came out of the first layer, of q's size

    @property
    def num_seqs(self) -> int:
        return len(self.tables)

    @property
    def has_past(self) -> bool:
        return self.context_len > self.num_rows

    def by_sequence(self, rows: torch.Tensor) -> torch.Tensor:
        """[num_seqs, num_heads, num_rows, head_dim]"""
        return rows.view(self.num_seqs, self.num_rows, *rows.shape[1:]).transpose(1, 2)

    def gathered(self, pool: torch.Tensor) -> torch.Tensor:
        """Keys and values, [2, num_seqs, num_kv_heads, context_len, head_dim], contiguous."""
        blocks = pool[self.tables.long()].permute(2, 0, 3, 1, 4, 5)
        return blocks.flatten(3, 4)[:, :, :, : self.context_len].contiguous()


@dataclass(frozen=True, slots=True)
class Timed:
    """One layer of a peer's."""

    seconds: float
    num_flops: int  # that it computed


class NotRunError(Exception):
    """Why, in a few words."""


def cells(peer: str, task: Task, seconds: float) -> list[str]:
    """Its time, and how fast ours is beside it: the ratio of flops per second, which is that of
    seconds where both compute the same. Or why there is no time."""
    try:
        theirs = timed(peer, task)
    except NotRunError as error:
        return [str(error), ""]
    except Exception as error:  # whatever a library raises, the other cases go on
        print(f"{peer}: {error}", file=sys.stderr, flush=True)
        line = next(iter(str(error).splitlines()), type(error).__name__)
        return [line[:MAX_WORDS].replace("|", "/"), ""]
    time, rate = f"{1e6 * theirs.seconds:.1f}", theirs.num_flops / theirs.seconds
    attained = f"{time}, {rate / 1e12:,.0f} TFLOP/s" if task.num_rows > 1 else time
    return [attained, f"{task.num_flops / seconds / rate:.2f}"]


def timed(peer: str, task: Task) -> Timed:
    """Raises NotRunError, or whatever the peer's library raises."""
    if task.q.device.type != "cuda":
        raise NotRunError("no device")
    return PEERS[peer](task)


def _flashinfer(task: Task) -> Timed:
    """The fastest of its kernels that such rows can have."""
    flashinfer = _installed("flashinfer")
    if task.num_rows > 1:
        ways = [flashinfer_chunks]
    else:
        ways = [partial(flashinfer_decode, use_tensor_cores=cores) for cores in (True, False)]
    seconds, problems = [], []
    for way in ways:
        try:
            attend = way(flashinfer, task)
            _check(attend(task.pools[0]), task.ours)
            seconds.append(_seconds(attend, task.pools))
        except Exception as error:  # not every group of heads has a kernel for CUDA cores
            problems.append(error)
    if not seconds:
        raise problems[0]
    for problem in problems:
        print(f"flashinfer, one of its kernels: {problem}", file=sys.stderr, flush=True)
    return Timed(min(seconds), task.num_flops)


def flashinfer_decode(flashinfer: Any, task: Task, *, use_tensor_cores: bool) -> Attend:
    """Planned for this very batch, and so without what would let a graph serve others: that plan
    fills the device at any lengths, this one has what is best for these."""
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(task), "HND", use_tensor_cores=use_tensor_cores
    )
    wrapper.plan(*_pages(task), *_heads(task), TILE, **_numbers(task))
    return partial(wrapper.run, task.q, out=torch.empty_like(task.q))


def flashinfer_chunks(flashinfer: Any, task: Task) -> Attend:
    """FlashAttention 3 where the device has it. Likewise planned for this very batch."""
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(task), "HND")
    starts = _starts(task.num_seqs, task.num_rows)
    numbers = _numbers(task) | {"causal": True}
    wrapper.plan(starts, *_pages(task), *_heads(task), TILE, **numbers)
    return partial(wrapper.run, task.q, out=torch.empty_like(task.q))


def _workspace(task: Task) -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=task.q.device)


def _starts(num_seqs: int, each: int) -> torch.Tensor:
    """On the host, where plans are made."""
    return torch.arange(num_seqs + 1, dtype=torch.int32) * each


def _pages(task: Task) -> list[torch.Tensor]:
    """Where each sequence's pages begin, all pages, and how full each sequence's last one is."""
    last = (task.context_len - 1) % TILE + 1
    lasts = torch.full((task.num_seqs,), last, dtype=torch.int32)
    return [_starts(task.num_seqs, task.tables.shape[1]), task.tables.flatten(), lasts]


def _heads(task: Task) -> list[int]:
    return [task.shape.num_heads, task.shape.num_kv_heads, task.shape.head_dim]


def _numbers(task: Task) -> dict[str, Any]:
    types = {"q_data_type": task.q.dtype, "kv_data_type": task.pools[0].dtype}
    return {**types, "sm_scale": task.shape.scale}


def _cudnn(task: Task) -> Timed:
    """Through torch, over keys and values that lie in one piece. Its causal mask begins at the
    first key, not at a chunk's: a chunk with a past is computed without one, and its flops are
    counted. The last row, which sees all keys, is still the same."""
    if task.num_rows == 1:
        raise NotRunError("chunks only")
    q = task.by_sequence(task.q).contiguous()
    layers = [task.gathered(pool) for pool in task.pools]
    attend = partial(cudnn_attention, task, q)
    try:
        found = attend(layers[0])
    except RuntimeError:  # it takes no groups of heads
        group = task.shape.num_heads // task.shape.num_kv_heads
        layers = [layer.repeat_interleave(group, dim=2) for layer in layers]
        found = attend(layers[0])
    first = task.num_rows - 1 if task.has_past else 0
    _check(found[:, :, first:], task.by_sequence(task.ours)[:, :, first:])
    num_pairs = task.num_seqs * task.num_rows * task.context_len
    num_flops = 4 * num_pairs * task.shape.num_heads * task.shape.head_dim
    return Timed(_seconds(attend, layers), num_flops if task.has_past else task.num_flops)


def cudnn_attention(task: Task, q: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """[num_seqs, num_heads, num_rows, head_dim], from keys and values as they were gathered."""
    how = {"is_causal": not task.has_past, "scale": task.shape.scale}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(
            q, layer[0], layer[1], enable_gqa=layer.shape[2] < q.shape[1], **how
        )


PEERS: dict[str, Callable[[Task], Timed]] = {"flashinfer": _flashinfer, "cudnn": _cudnn}


def _seconds(attend: Attend, layers: Sequence[torch.Tensor]) -> float:
    calls = [partial(attend, layer) for layer in layers]
    return seconds_per_call(calls, layers[0].device)


def _check(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """A yardstick that computes something else is none."""
    difference = torch.linalg.vector_norm(theirs.float() - ours.float())
    share = float(difference / torch.linalg.vector_norm(ours.float()))
    if not share <= MAX_DIFFERENCE:  # NaN is none either
        raise NotRunError(f"its result differs by {share:.1%}")


def _installed(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise NotRunError("not installed") from error


def build(head_dim: int, dtype: torch.dtype) -> None:
    """Compiles all kernels of FlashInfer's that are timed here, on all cores at once: when first
    used they would be one after another. Waits for another process that does so. Raises
    NotRunError, or what FlashInfer raises."""
    _installed("flashinfer")
    jit: Any = import_module("flashinfer.jit")
    types = (dtype, dtype, dtype, torch.int32, head_dim, head_dim, 0, False, False)
    specs = [jit.gen_batch_prefill_module(backend, *types, False) for backend in ("fa2", "fa3")]
    jit.build_jit_specs([*specs, jit.gen_batch_decode_module(*types)])


def prepare(peers: Sequence[str], head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """What they would else compile between what is timed. One that can't says so in its cells."""
    if device.type != "cuda" or "flashinfer" not in peers:
        return
    try:
        build(head_dim, dtype)
    except Exception as error:
        print(f"flashinfer: {error}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m gpu.attention_peers", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="Llama-3.1-8B")
    build(MODELS[parser.parse_args(arguments).model].head_dim, torch.bfloat16)
    return 0


if __name__ == "__main__":
    sys.exit(main())
