"""As many tokens a second as an engine makes of requests that are all there at once: those that
nano-vllm and mini-sglang publish their figures of. Random weights, one step ahead of the host.

PYTHONPATH=scripts .venv/bin/python -m gpu.offline --model Llama-3.1-8B --peer transformers
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from benchmark.report import aligned
from benchmark.workload import Range, Request

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.models.decoder import Decoder
from chairlift.worker.sequence import Sequence as EngineSequence

from . import roofline, transformers_peer
from .engines import dtype_for, engine_of, num_blocks_of, sequence_of, settings_of, warm_up_s
from .random_model import random_decoder
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here
from .work import total_seconds

SEED = 0
LENGTHS = Range(100, 1024)  # of prompts and of outputs
LARGEST_ID = 10_000  # of a prompt
TEMPERATURE = 0.6
HEAD = [
    "",
    "requests",
    "output tokens",
    "seconds",
    "roofline, s",
    "times roofline",
    "output tokens/s",
    "roofline, tokens/s",
]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is run, and how."""

    model: ModelShape
    device: torch.device
    ceiling: Roofline
    max_num_seqs: int
    max_num_batched_tokens: int
    depth: int

    @property
    def dtype(self) -> torch.dtype:
        return dtype_for(self.device)


@dataclass(frozen=True, slots=True)
class Result:
    """One run of some requests."""

    who: str
    num_requests: int
    num_output_tokens: int  # that came
    seconds: float
    floor_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_output_tokens / self.seconds

    @property
    def cells(self) -> list[str]:
        return [
            self.who,
            f"{self.num_requests}",
            f"{self.num_output_tokens:,}",
            f"{self.seconds:.2f}",
            f"{self.floor_s:.2f}",
            f"{self.seconds / self.floor_s:.2f}",
            f"{self.tokens_per_s:,.0f}",
            f"{self.num_output_tokens / self.floor_s:,.0f}",
        ]


def requests_of(count: int, lengths: Range, vocab_size: int) -> list[Request]:
    """Drawn in the order of nano-vllm's bench.py, so that these are the same ones."""
    rng, largest = Random(SEED), min(LARGEST_ID, vocab_size - 1)

    def length() -> int:
        return rng.randint(lengths.low, lengths.high)

    prompts = [[rng.randint(0, largest) for _ in range(length())] for _ in range(count)]
    return [Request(prompt, length()) for prompt in prompts]


def measure(setup: Setup, requests: Sequence[Request], num_peer: int, repeats: int) -> list[Result]:
    """Ours: all requests, and those that a peer is to have, if any. All its memory is free then."""
    length = max(request.num_tokens for request in requests)
    decoder = random_decoder(setup.model, length, setup.dtype, setup.device)
    results = list(_runs(setup, decoder, requests, repeats))
    if num_peer:
        results += _runs(setup, decoder, requests[:num_peer], repeats, "the peer's, ")
    del decoder
    gc.collect()
    torch.cuda.empty_cache()
    return results


def _runs(
    setup: Setup, decoder: Decoder, requests: Sequence[Request], repeats: int, what: str = ""
) -> Iterator[Result]:
    """By one engine, which captures sizes of steps as they come: so the first is the slowest."""
    settings = settings_of(setup.max_num_seqs, setup.max_num_batched_tokens)
    num_blocks = num_blocks_of(request.num_tokens for request in requests)
    engine, executor = engine_of(decoder, settings, num_blocks, setup.depth)
    started = time.perf_counter()
    engine.warm_up(warm_up_s(setup.device))
    print(f"ready in {time.perf_counter() - started:.1f} s", flush=True)
    for repeat in range(repeats):
        sequences = [_sequence(number, request) for number, request in enumerate(requests)]
        executor.works.clear()
        started = time.perf_counter()
        for sequence in sequences:
            engine.add(sequence)
        while engine.has_work:
            engine.step()
        seconds = time.perf_counter() - started
        floor_s = total_seconds(executor.works, setup.model, setup.dtype, setup.ceiling)
        num_output = sum(sequence.num_output_tokens for sequence in sequences)
        name = f"chairlift, {what}run {repeat + 1}"
        print(f"{name}: {len(executor.works)} steps in {seconds:.1f} s", flush=True)
        yield Result(name, len(requests), num_output, seconds, floor_s)


def _sequence(number: int, request: Request) -> EngineSequence:
    params = SamplingParams(
        max_tokens=request.num_output_tokens,
        temperature=TEMPERATURE,
        seed=number,
        ignore_eos=True,
    )
    return sequence_of(number, request.prompt_token_ids, params)


def compare(setup: Setup, requests: Sequence[Request], ours: Result) -> Result | None:
    """The peer on the same requests, which have the same roofline; None where it can't run."""
    try:
        run = transformers_peer.run(setup.model, requests, setup.dtype, setup.device)
    except transformers_peer.NotRunError as error:
        print(f"transformers: not run, {error}")
        return None
    name = f"transformers {run.version}, without flash-attn"
    theirs = Result(name, len(requests), run.num_output_tokens, run.seconds, ours.floor_s)
    print(
        f"chairlift makes {ours.tokens_per_s / theirs.tokens_per_s:.2f} times the tokens/s of "
        f"transformers {run.version} on {len(requests)} requests; transformers is handicapped "
        "without flash-attn, and decodes greedily."
    )
    return theirs


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    setup = Setup(
        model=TINY if chosen.tiny else MODELS[chosen.model],
        device=device,
        ceiling=roofline.measured(device, roofline.sizes(is_tiny=chosen.tiny)),
        max_num_seqs=3 if chosen.tiny else chosen.max_num_seqs,
        max_num_batched_tokens=64 if chosen.tiny else chosen.max_num_batched_tokens,
        depth=chosen.depth,
    )
    count, lengths = (4, Range(2, 8)) if chosen.tiny else (chosen.requests, LENGTHS)
    requests = requests_of(count, lengths, setup.model.vocab_size)
    num_peer = min(chosen.peer_requests, len(requests)) if chosen.peer else 0
    results = measure(setup, requests, num_peer, 1 if chosen.tiny else chosen.repeats)
    theirs = compare(setup, requests[:num_peer], results[-1]) if num_peer else None
    results += [theirs] if theirs else []
    num_prompt = sum(len(request.prompt_token_ids) for request in requests)
    print(
        f"{setup.model.name}, {setup.dtype}: {num_prompt:,} prompt tokens in all, at most "
        f"{setup.max_num_seqs} sequences and {setup.max_num_batched_tokens} tokens a step, depth "
        f"{setup.depth}; ceilings {setup.ceiling}\n"
    )
    print(aligned([HEAD, *(result.cells for result in results)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpu.offline", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="store_true", help="to see that it runs, on any machine")
    add("--model", choices=MODELS, default="Qwen3-0.6B")
    add("--requests", type=int, default=256)
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=int, default=8192)
    add("--depth", type=int, choices=(0, 1), default=1, help="0: each step waits for the last")
    add("--repeats", type=int, default=2, help="runs of the same engine")
    add("--peer", choices=("transformers",), help="its continuous batching, afterwards")
    add("--peer-requests", type=int, default=16, help="the first so many")
    return parser


if __name__ == "__main__":
    sys.exit(main())
