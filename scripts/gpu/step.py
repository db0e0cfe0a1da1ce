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
from chairlift.worker.models.decoder import Decoder
from chairlift.worker.sequence import Sequence as EngineSequence

from . import profile, roofline
from .engines import dtype_for, engine_of, num_blocks_of, sequence_of, settings_of, warm_up_s
from .profile import Kernel
from .random_model import random_decoder
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here
from .work import total_seconds

SETTLING_STEPS = 8
PROFILES = 2


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


class Decoding:
    """One engine's sequences, which all decode after prompts of `length` have been read."""

    def __init__(
        self, model: ModelShape, decoder: Decoder, settings: WorkerSettings, length: int
    ) -> None:
        self.num_seqs, self.device = settings.max_num_seqs, decoder.device
        self._model, self._dtype = model, decoder.weights.norm.dtype
        self._num_steps = 64 if self.device.type == "cuda" else 2
        # The first go on while the prompts of the last are read, and nobody may end meanwhile.
        others = 2 * SETTLING_STEPS + _prompt_steps(self.num_seqs, length, self.device)
        max_tokens = self._num_steps + PROFILES * profile.NUM_STEPS + others
        num_blocks = num_blocks_of([length + max_tokens] * self.num_seqs)
        self._engine, self._executor = engine_of(decoder, settings, num_blocks)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1)
        self._sequences = [
            sequence_of(number, _prompt(model, number, length), params)
            for number in range(self.num_seqs)
        ]
        started = time.perf_counter()
        self._engine.warm_up(warm_up_s(self.device))
        seconds = time.perf_counter() - started
        sizes = f"{self._executor.num_sizes} sizes of steps"
        print(f"{self.num_seqs} sequences: {sizes} ready in {seconds:.1f} s", flush=True)
        self._settle()

    def _settle(self) -> None:
        """Until all decode, and have done so for some steps."""
        for sequence in self._sequences:
            self._engine.add(sequence)
        while min(sequence.num_output_tokens for sequence in self._sequences) < SETTLING_STEPS:
            self._engine.step()

    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._engine.step()
        assert not any(sequence.finish for sequence in self._sequences)

    def measured(self, ceiling: Roofline) -> Measured:
        num_steps, first = self._num_steps, _mean_length(self._sequences)
        started = time.perf_counter()
        self.step(num_steps)
        step_s = (time.perf_counter() - started) / num_steps
        mean_length = (first + _mean_length(self._sequences)) / 2
        works = self._executor.works[-num_steps:]
        floor_s = total_seconds(works, self._model, self._dtype, ceiling) / num_steps
        return Measured(self.num_seqs, round(mean_length), floor_s, step_s)

    def profiled(self) -> list[Kernel]:
        """What `profile.NUM_STEPS` steps run. The first profile of a process waits for the
        profiler itself, and is thrown away."""
        *_, last = [
            profile.kernels_of(lambda: self.step(profile.NUM_STEPS)) for _ in range(PROFILES)
        ]
        return last


def measure(
    model: ModelShape,
    decoder: Decoder,
    ceiling: Roofline,
    all_settings: Sequence[WorkerSettings],
    length: int,
) -> Iterator[Measured]:
    """Steps in which every sequence decodes, after prompts of `length` have been read."""
    for settings in all_settings:
        yield Decoding(model, decoder, settings, length).measured(ceiling)


def report(decoding: Decoding, unprofiled: Measured) -> None:
    """Which kernels the time of a step goes to."""
    if decoding.device.type != "cuda":
        print("there is no device to profile")
        return
    kernels = decoding.profiled()
    if not kernels:
        print("the profiler has seen no kernel: this machine may not let it")
        return
    step_ms = profile.step_ms(kernels, profile.NUM_STEPS)
    print(
        f"{decoding.num_seqs} sequences: {step_ms:.2f} ms a step under the profiler, "
        f"{1e3 * unprofiled.step_s:.2f} ms without\n"
    )
    print(aligned([profile.HEAD, *profile.rows_of(kernels, profile.NUM_STEPS)]), flush=True)
    print()


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
    parser.add_argument("--profile", action="store_true", help="a step's time, kernel by kernel")
    chosen = parser.parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    model = TINY if chosen.tiny else MODELS[chosen.model]
    batches, length = ([1, 3], 70) if chosen.tiny else (chosen.batches, chosen.context)
    dtype = dtype_for(device)
    ceiling = roofline.measured(device, roofline.sizes(is_tiny=chosen.tiny))
    started = time.perf_counter()
    decoder = random_decoder(model, max_model_len(batches, length, device), dtype, device)
    rows = []
    for settings in all_settings_of(batches, device):
        decoding = Decoding(model, decoder, settings, length)
        rows.append(decoding.measured(ceiling))
        if chosen.profile:
            report(decoding, rows[-1])
    seconds = time.perf_counter() - started
    print(f"{model.name}, {dtype}: {seconds:.1f} s in all; ceilings {ceiling}\n")
    head = ["sequences", "context", "roofline, ms", "step, ms", "times roofline", "tokens/s"]
    print(aligned([head, *(row.cells for row in rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
