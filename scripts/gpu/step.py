"""One decode step of a whole model with random weights: on the device alone, and as an engine runs
it, one step ahead.

PYTHONPATH=scripts .venv/bin/python -m gpu.step --model Qwen3-0.6B
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from benchmark.report import aligned

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.cuda.attention import TritonAttention
from chairlift.worker.cuda.attention_variants import TILE, BatchLimits
from chairlift.worker.cuda.executor import GpuExecutor
from chairlift.worker.cuda.operations import TritonOperations
from chairlift.worker.engine import Engine
from chairlift.worker.kernels.choice import Kernels
from chairlift.worker.models.decoder import Decoder
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import ContinuousScheduler
from chairlift.worker.sequence import Sequence as EngineSequence

from . import roofline
from .random_model import random_decoder
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here

SETTLING_STEPS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one batch that decodes."""

    num_seqs: int
    context_len: int
    floor_s: float
    step_s: float  # from one step's tokens to the next one's, by the host's clock

    @property
    def cells(self) -> list[str]:
        return [
            str(self.num_seqs),
            str(self.context_len),
            f"{1e3 * self.floor_s:.2f}",
            f"{1e3 * self.step_s:.2f}",
            f"{self.step_s / self.floor_s:.2f}",
            f"{self.num_seqs / self.step_s:,.0f}",
        ]


def measure(
    model: ModelShape, decoder: Decoder, ceiling: Roofline, batches: Sequence[int], length: int
) -> Iterator[Measured]:
    """Steps in which every sequence decodes, after prompts of `length` have been read."""
    dtype, device = decoder.weights.norm.dtype, decoder.device
    for num_seqs in batches:
        num_steps = 64 if device.type == "cuda" else 2
        # The first go on while the prompts of the last are read, and nobody may end meanwhile.
        max_tokens = num_steps + 2 * SETTLING_STEPS + _prompt_steps(num_seqs, length, device)
        engine = _engine(model, decoder, num_seqs, length + max_tokens)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1)
        sequences = [
            EngineSequence(number.to_bytes(16, "big"), _prompt(model, number, length), params)
            for number in range(num_seqs)
        ]
        started = time.perf_counter()
        engine.warm_up(60.0)
        print(f"{num_seqs} sequences: ready in {time.perf_counter() - started:.1f} s", flush=True)
        for sequence in sequences:
            engine.add(sequence)
        while min(sequence.num_output_tokens for sequence in sequences) < SETTLING_STEPS:
            engine.step()
        started, first = time.perf_counter(), _mean_length(sequences)
        for _ in range(num_steps):
            engine.step()
        step_s = (time.perf_counter() - started) / num_steps
        assert not any(sequence.finish for sequence in sequences)
        mean_length = (first + _mean_length(sequences)) / 2
        kv_bytes = num_seqs * mean_length * model.kv_bytes_per_token(dtype)
        num_bytes = model.streamed_bytes(dtype) + kv_bytes
        floor_s = ceiling.seconds(num_bytes, 2 * num_seqs * model.streamed_bytes(dtype) / 2)
        yield Measured(num_seqs, round(mean_length), floor_s, step_s)


def _mean_length(sequences: Sequence[EngineSequence]) -> float:
    return sum(sequence.num_tokens for sequence in sequences) / len(sequences)


def _prompt_steps(num_seqs: int, length: int, device: torch.device) -> int:
    """At the most: those that decode by then have their share of each step."""
    return 2 * num_seqs * length // _budget(device) + 2


def _budget(device: torch.device) -> int:
    """Tokens of a step: room for a block of a prompt beside all that decode."""
    return 2048 if device.type == "cuda" else 128


def _engine(model: ModelShape, decoder: Decoder, num_seqs: int, length: int) -> Engine:
    num_blocks = num_seqs * (-(-length // TILE) + 1)
    budget = max(_budget(decoder.device), num_seqs)
    limits = BatchLimits(num_seqs, budget, decoder.max_model_len)
    shape = decoder.config.attention_shape
    dtype, eos = decoder.weights.norm.dtype, frozenset({0})
    attention = TritonAttention(shape, num_blocks, dtype, limits, decoder.device)
    kernels = Kernels(attention, TritonOperations())
    scheduler = ContinuousScheduler(
        BlockManager(num_blocks, TILE, has_prefix_cache=False),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=budget,
    )
    return Engine(scheduler, GpuExecutor(decoder, kernels, Sampler(eos), eos), eos)


def _prompt(model: ModelShape, number: int, length: int) -> list[int]:
    return [1 + (31 * number + 7 * i) % (model.vocab_size - 1) for i in range(length)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m gpu.step", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on any machine")
    parser.add_argument("--model", choices=MODELS, default="Qwen3-0.6B")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=1024)
    chosen = parser.parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    model = TINY if chosen.tiny else MODELS[chosen.model]
    batches, length = ([1, 3], 70) if chosen.tiny else (chosen.batches, chosen.context)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ceiling = roofline.measured(device, roofline.TINY if chosen.tiny else roofline.Sizes())
    started = time.perf_counter()
    max_model_len = length + 256 + _prompt_steps(max(batches), length, device)
    decoder = random_decoder(model, max_model_len, dtype, device)
    rows = list(measure(model, decoder, ceiling, batches, length))
    seconds = time.perf_counter() - started
    speed = f"{ceiling.bytes_per_s / 1e9:,.0f} GB/s"
    print(f"{model.name}, {dtype}: {seconds:.1f} s in all; ceiling {speed}\n")
    head = ["sequences", "context", "roofline, ms", "step, ms", "times roofline", "tokens/s"]
    print(aligned([head, *(row.cells for row in rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
