"""Attention alone: rows that decode, held against a copy, and chunks of prompts, against a product.

PYTHONPATH=scripts .venv/bin/python -m gpu.attention --model Llama-3.1-8B
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

from . import roofline
from .engines import dtype_for
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here, seconds_per_call

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


def seconds_of(
    case: Case, shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> float:
    """Of one layer."""
    num_blocks = case.num_seqs * -(-case.context_len // TILE)
    num_rows = case.num_seqs * case.num_rows
    limits = BatchLimits(case.num_seqs, num_rows, case.context_len)
    attention = TritonAttention(shape, num_blocks, dtype, limits, device)
    attention.pool.normal_()
    prepared = attention.prepare(case.batch(device))
    q = torch.randn(num_rows, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    layers = range(shape.num_layers)
    return seconds_per_call([lambda i=i: attention.attend(i, q, prepared) for i in layers], device)


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m gpu.attention", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on any machine")
    parser.add_argument("--model", choices=MODELS, default="Llama-3.1-8B")
    chosen = parser.parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    dtype = dtype_for(device)
    ceiling = roofline.measured(device, roofline.sizes(is_tiny=chosen.tiny))
    model = TINY if chosen.tiny else MODELS[chosen.model]
    rows = []
    for case in TINY_CASES if chosen.tiny else CASES:
        layer_bytes = case.num_bytes(shape_of(model, 1), dtype.itemsize)
        num_layers = max(1, min(2 if chosen.tiny else NUM_LAYERS, MAX_POOL_BYTES // layer_bytes))
        shape = shape_of(model, num_layers)
        seconds = seconds_of(case, shape, dtype, device)
        rows.append(row_of(case, shape, dtype.itemsize, seconds, ceiling))
    print(f"{model.name}, one layer, {dtype}; ceilings {ceiling}\n")
    print(aligned([["sequences", "bound by", "floor, µs", "µs", "attained", "of floor"], *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
