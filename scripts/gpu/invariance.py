"""Whether an answer depends on who else is in the batch, and what it costs that it does not: by
default, and as a worker's --deterministic has it.

PYTHONPATH=scripts .venv/bin/python -m gpu.invariance --model Llama-3.1-8B

Each mode has a process of its own, because cuBLAS reads its environment once.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from benchmark.report import aligned

from chairlift.shared.settings import WorkerSettings
from chairlift.worker.cuda.platform import CudaPlatform
from chairlift.worker.models.decoder import Decoder

from . import roofline, step
from .crowd import KINDS, Agreement, compare, crowd
from .engines import dtype_for, engine_of, num_blocks_of, settings_of, warm_up_s
from .random_model import random_decoder
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .step import Measured
from .timing import here, name_of

MODES = ("default", "deterministic")
SEED = 9  # of the weights, so that both modes have the same ones
MAX_NUM_BATCHED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of what is compared and timed."""

    num_requests: int
    num_tokens: int  # of the longest answer
    neighbours: Sequence[int]
    batches: Sequence[int]  # that decode
    context: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one mode has shown."""

    device: str
    ceiling: Roofline
    agreements: list[Agreement]
    steps: list[Measured]


def in_mode(settings: WorkerSettings, mode: str) -> WorkerSettings:
    """What a worker in this mode is given."""
    return settings.model_copy(update={"deterministic": mode == "deterministic"})


def measure(model: ModelShape, sizes: Sizes, mode: str, *, is_tiny: bool) -> Run:
    device = here(is_tiny=is_tiny)
    num_seqs = max(sizes.neighbours) + 1
    settings = in_mode(settings_of(num_seqs, MAX_NUM_BATCHED_TOKENS), mode)
    # Before anything is multiplied: cuBLAS reads the environment once.
    make_linear = CudaPlatform(settings, device).linear_factory()
    timed = [in_mode(one, mode) for one in step.all_settings_of(sizes.batches, device)]
    dtype = dtype_for(device)
    ceiling = roofline.measured(device, roofline.sizes(is_tiny=is_tiny))
    torch.manual_seed(SEED)
    length = max(5 * sizes.num_tokens, step.max_model_len(sizes.batches, sizes.context, device))
    decoder = random_decoder(model, length, dtype, device, make_linear)
    agreements = _agreements(model, decoder, settings, sizes)
    gc.collect()  # the crowd's keys and values
    return Run(
        device=name_of(device),
        ceiling=ceiling,
        agreements=agreements,
        steps=list(step.measure(model, decoder, ceiling, timed, sizes.context)),
    )


def _agreements(
    model: ModelShape, decoder: Decoder, settings: WorkerSettings, sizes: Sizes
) -> list[Agreement]:
    """By one engine with seats for all."""
    size = settings.max_num_seqs
    members = crowd(sizes.num_requests, size, model.vocab_size, sizes.num_tokens)
    num_blocks = num_blocks_of(len(one.prompt) + one.num_tokens for one in members)
    engine, _ = engine_of(decoder, settings, num_blocks)
    engine.warm_up(warm_up_s(decoder.device))
    return list(compare(engine, members, sizes.neighbours))


def measure_in_process(mode: str, arguments: Sequence[str]) -> Run:
    """Raises CalledProcessError if it fails, and what it wrote has been seen."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        own = ["--mode", mode, "--result", str(file)]
        command = [sys.executable, "-m", "gpu.invariance", *arguments, *own]
        subprocess.run(command, check=True)
        return msgspec.json.decode(file.read_bytes(), type=Run)


def rows_of(runs: Mapping[str, Run]) -> Iterator[list[str]]:
    """A column for each mode, and what can't be surpassed."""
    yield ["", *runs, "roofline"]
    columns = list(runs.values())
    for found in zip(*(run.agreements for run in columns), strict=True):
        what = f"{found[0].kind}, among {found[0].num_neighbours}"
        for kind, counts in {
            "same tokens": [one.num_same_tokens for one in found],
            "same bits": [one.num_same_bits for one in found],
        }.items():
            of = found[0].num_subjects
            shares = [f"{count} of {of} ({count / of:.0%})" for count in counts]
            yield [f"{what}: {kind}", *shares, "100%"]
    for steps in zip(*(run.steps for run in columns), strict=True):
        times = [f"{1000 * one.step_s:.2f}" for one in steps]
        what = f"decode of {steps[0].num_seqs} at {steps[0].context_len}, ms"
        yield [what, *times, f"{1000 * steps[0].floor_s:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    chosen = parser.parse_args(arguments)
    model = TINY if chosen.tiny else MODELS[chosen.model]
    sizes = (
        Sizes(1, 3, (1, 3), (1,), 8)
        if chosen.tiny
        else Sizes(
            chosen.requests, chosen.tokens, chosen.neighbours, chosen.batches, chosen.context
        )
    )
    if len(KINDS) * sizes.num_requests > max(sizes.neighbours) + 1:
        parser.error("--requests: each comes greedily and sampled, and --neighbours have no place")
    here(is_tiny=chosen.tiny)  # or none of the processes that follow can
    runs = {
        mode: measure(model, sizes, mode, is_tiny=chosen.tiny)
        if chosen.mode
        else measure_in_process(mode, arguments)
        for mode in ([chosen.mode] if chosen.mode else MODES)
    }
    if chosen.result:
        chosen.result.write_bytes(msgspec.json.encode(runs[chosen.mode]))
        return 0
    print(f"{model.name}, answers of at most {sizes.num_tokens} tokens")
    print(
        *(f"{run.device}, {mode}: ceilings {run.ceiling}" for mode, run in runs.items()), sep="\n"
    )
    print("", aligned(list(rows_of(runs))), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpu.invariance", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="store_true", help="to see that it runs, on any machine")
    add("--model", choices=MODELS, default="Qwen3-0.6B")
    add("--requests", type=int, default=16, help="each of them greedily, and sampled")
    add("--tokens", type=int, default=128, help="of the longest answer")
    add("--neighbours", type=int, nargs="+", default=[1, 3, 31, 255])
    add("--batches", type=int, nargs="+", default=[1, 32, 256], help="whose steps are timed")
    add("--context", type=int, default=1024, help="of the prompts before those steps")
    add("--mode", choices=MODES, help="only this one, in this process")
    add("--result", type=Path, metavar="FILE", help="with --mode: for the process that asks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
