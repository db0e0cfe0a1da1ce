"""Attention alone: rows that decode, held against a copy, and chunks of prompts, against a product;
beside them, where asked for, what other libraries take for the same.

PYTHONPATH=scripts .venv/bin/python -m gpu.attention --model Llama-3.1-8B --peers flashinfer cudnn
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from benchmark.report import aligned

from chairlift.worker.attention.backend import AttentionShape
from chairlift.worker.batch import Batch, Segment
from chairlift.worker.cuda.attention import TritonAttention
from chairlift.worker.cuda.attention_variants import TILE, BatchLimits

from . import attention_peers, roofline
from .attention_peers import PEERS, Task
from .engines import dtype_for
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import Call, here, seconds_per_call

NUM_LAYERS = 8  # by turns, so that caches hold none of what the next reads


@dataclass(frozen=True, slots=True)
class Case:
    """Equal sequences, each of which computes its last rows."""

    num_seqs: int
    num_rows: int  # of each
    context_len: int

    @property
    def name(self) -> str:
        what = "decode" if self.num_rows == 1 else f"chunk of {self.num_rows}"
        return f"{self.num_seqs} x {what} at {self.context_len}"

    def num_bytes(self, shape: AttentionShape, item_bytes: int) -> int:
        """Of keys and values, each read once."""
        num_tokens = self.num_seqs * self.context_len
        return 2 * num_tokens * shape.num_kv_heads * shape.head_dim * item_bytes

    def num_flops(self, shape: AttentionShape) -> int:
        """Of scores and of sums, for keys up to each row's own."""
        past = self.context_len - self.num_rows
        num_pairs = self.num_rows * past + self.num_rows * (self.num_rows + 1) // 2
        return 4 * self.num_seqs * num_pairs * shape.num_heads * shape.head_dim

    def batch(self, device: torch.device) -> Batch:
        num_blocks = -(-self.context_len // TILE)
        places = torch.randperm(self.num_seqs * num_blocks).view(self.num_seqs, -1).tolist()
        segments = tuple(
            Segment(number * self.num_rows, self.num_rows, self.context_len, places[number])
            for number in range(self.num_seqs)
        )
        rows = torch.zeros(self.num_seqs * self.num_rows, dtype=torch.int64, device=device)
        return Batch(rows, rows, rows, rows[:0], segments)


CASES = [
    *(Case(n, 1, length) for length in (1024, 8192, 32_768) for n in (1, 8, 32, 256)),
    Case(1, 2048, 2048),
    Case(1, 2048, 8192),
    Case(8, 512, 512),
]
MAX_POOL_BYTES = 100 << 30
TINY_CASES = [Case(1, 1, 100), Case(3, 1, 70), Case(2, 20, 70)]


@dataclass(frozen=True, slots=True)
class Ours:
    """A call for each layer, and what a peer has to compute beside them."""

    calls: list[Call]
    task: Task


def ours_of(case: Case, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Ours:
    """Over a pool of random keys and values."""
    num_blocks = case.num_seqs * -(-case.context_len // TILE)
    num_rows = case.num_seqs * case.num_rows
    limits = BatchLimits(case.num_seqs, num_rows, case.context_len)
    attention = TritonAttention(shape, num_blocks, dtype, limits, device)
    attention.pool.normal_()
    batch = case.batch(device)
    prepared = attention.prepare(batch)
    q = torch.randn(num_rows, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    layers = range(shape.num_layers)
    tables = [segment.block_table for segment in batch.segments]
    task = Task(
        shape=shape,
        q=q,
        pools=[attention.layer_pool(i) for i in layers],
        tables=torch.tensor(tables, dtype=torch.int32, device=device),
        num_rows=case.num_rows,
        context_len=case.context_len,
        num_flops=case.num_flops(shape),
        ours=attention.attend(0, q, prepared),
    )
    return Ours([lambda i=i: attention.attend(i, q, prepared) for i in layers], task)


def row_of(
    case: Case, shape: AttentionShape, item_bytes: int, seconds: float, ceiling: Roofline
) -> list[str]:
    num_bytes = case.num_bytes(shape, item_bytes)
    floor_s = ceiling.seconds(num_bytes, case.num_flops(shape))
    bound = ceiling.bound(num_bytes, case.num_flops(shape))
    attained = (
        f"{num_bytes / seconds / 1e9:,.0f} GB/s"
        if bound == "memory"
        else f"{case.num_flops(shape) / seconds / 1e12:,.0f} TFLOP/s"
    )
    times = f"{1e6 * floor_s:.1f}", f"{1e6 * seconds:.1f}"
    return [case.name, bound, *times, attained, f"{floor_s / seconds:.0%}"]


def shape_of(model: ModelShape, num_layers: int) -> AttentionShape:
    heads = (model.num_heads, model.num_kv_heads, model.head_dim)
    return AttentionShape(num_layers, *heads, model.head_dim**-0.5, (None,) * num_layers)


def _cases(only: str | None, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if only in (None, "decode" if case.num_rows == 1 else "chunks")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m gpu.attention", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on any machine")
    parser.add_argument("--model", choices=MODELS, default="Llama-3.1-8B")
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=[], help="timed beside ours")
    parser.add_argument("--only", choices=("decode", "chunks"), help="of the cases")
    chosen = parser.parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    dtype = dtype_for(device)
    ceiling = roofline.measured(device, roofline.sizes(is_tiny=chosen.tiny))
    model = TINY if chosen.tiny else MODELS[chosen.model]
    attention_peers.prepare(chosen.peers, model.head_dim, dtype, device)
    rows = []
    for case in _cases(chosen.only, TINY_CASES if chosen.tiny else CASES):
        layer_bytes = case.num_bytes(shape_of(model, 1), dtype.itemsize)
        num_layers = max(1, min(2 if chosen.tiny else NUM_LAYERS, MAX_POOL_BYTES // layer_bytes))
        shape = shape_of(model, num_layers)
        ours = ours_of(case, shape, dtype, device)
        seconds = seconds_per_call(ours.calls, device)
        row = row_of(case, shape, dtype.itemsize, seconds, ceiling)
        for peer in chosen.peers:
            row += attention_peers.cells(peer, ours.task, seconds)
        del ours  # its memory is the next one's
        print(*row, sep=", ", flush=True)  # as they come: some of them are better than none
        rows.append(row)
    print(f"{model.name}, one layer, {dtype}; ceilings {ceiling}")
    if chosen.peers:
        print(attention_peers.LEGEND)
    peers = [text for peer in chosen.peers for text in (f"{peer}, µs", f"ours / {peer}")]
    head = ["sequences", "bound by", "floor, µs", "µs", "attained", "of floor", *peers]
    print("", aligned([head, *rows]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
