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
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.engine import Engine
from chairlift.worker.models.decoder import Decoder
from chairlift.worker.sequence import Sequence as EngineSequence

from . import roofline
from .engines import dtype_for, engine_of, num_blocks_of, sequence_of, settings_of, warm_up_s
from .random_model import random_decoder
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here
from .work import total_seconds

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
    model: ModelShape,
    decoder: Decoder,
    ceiling: Roofline,
    all_settings: Sequence[WorkerSettings],
    length: int,
) -> Iterator[Measured]:
    """Steps in which every sequence decodes, after prompts of `length` have been read."""
    dtype, device = decoder.weights.norm.dtype, decoder.device
    for settings in all_settings:
        num_seqs, num_steps = settings.max_num_seqs, 64 if device.type == "cuda" else 2
        # The first go on while the prompts of the last are read, and nobody may end meanwhile.
        max_tokens = num_steps + 2 * SETTLING_STEPS + _prompt_steps(num_seqs, length, device)
        num_blocks = num_blocks_of([length + max_tokens] * num_seqs)
        engine, executor = engine_of(decoder, settings, num_blocks)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1)
        sequences = [
            sequence_of(number, _prompt(model, number, length), params)
            for number in range(num_seqs)
        ]
        started = time.perf_counter()
        engine.warm_up(warm_up_s(device))
        print(f"{num_seqs} sequences: ready in {time.perf_counter() - started:.1f} s", flush=True)
        _settle(engine, sequences)
        started, first = time.perf_counter(), _mean_length(sequences)
        for _ in range(num_steps):
            engine.step()
        step_s = (time.perf_counter() - started) / num_steps
        assert not any(sequence.finish for sequence in sequences)
        mean_length = (first + _mean_length(sequences)) / 2
        works = executor.works[-num_steps:]
        floor_s = total_seconds(works, model, dtype, ceiling) / num_steps
        yield Measured(num_seqs, round(mean_length), floor_s, step_s)


def _settle(engine: Engine, sequences: Sequence[EngineSequence]) -> None:
    """Until all decode, and have done so for some steps."""
    for sequence in sequences:
        engine.add(sequence)
    while min(sequence.num_output_tokens for sequence in sequences) < SETTLING_STEPS:
        engine.step()


def _mean_length(sequences: Sequence[EngineSequence]) -> float:
    return sum(sequence.num_tokens for sequence in sequences) / len(sequences)


def _prompt_steps(num_seqs: int, length: int, device: torch.device) -> int:
    """At the most: those that decode by then have their share of each step."""
    return 2 * num_seqs * length // _budget(device) + 2


def max_model_len(batches: Sequence[int], length: int, device: torch.device) -> int:
    """Of the longest that is measured."""
    return length + 256 + _prompt_steps(max(batches), length, device)


def _budget(device: torch.device) -> int:
    """Tokens of a step."""
    return 2048 if device.type == "cuda" else 128


def all_settings_of(batches: Sequence[int], device: torch.device) -> list[WorkerSettings]:
    """Of a worker for each number of sequences."""
    return [settings_of(num_seqs, _budget(device)) for num_seqs in batches]


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
    dtype = dtype_for(device)
    ceiling = roofline.measured(device, roofline.sizes(is_tiny=chosen.tiny))
    started = time.perf_counter()
    decoder = random_decoder(model, max_model_len(batches, length, device), dtype, device)
    rows = list(measure(model, decoder, ceiling, all_settings_of(batches, device), length))
    seconds = time.perf_counter() - started
    print(f"{model.name}, {dtype}: {seconds:.1f} s in all; ceilings {ceiling}\n")
    head = ["sequences", "context", "roofline, ms", "step, ms", "times roofline", "tokens/s"]
    print(aligned([head, *(row.cells for row in rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
