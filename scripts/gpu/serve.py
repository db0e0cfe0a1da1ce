"""A worker and a frontend over HTTP, on one machine with their client: 500 requests of 512 tokens,
answered with 128, all at once and 16 a second. The checkpoint has random weights.

PYTHONPATH=scripts .venv/bin/python -m gpu.serve --model Llama-3.1-8B --folder /dev/shm
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random

import msgspec
import torch
from benchmark.errors import BenchmarkError
from benchmark.figures import Exchange, Figures, Measured
from benchmark.job import Job
from benchmark.machine import LoadMeter
from benchmark.over_http import drive, drive_at
from benchmark.processes import Servers, servers
from benchmark.report import aligned
from benchmark.workload import Request

from . import checkpoint, roofline
from .engines import dtype_for
from .metered_worker import Span
from .roofline import Roofline
from .shapes import MODELS, TINY, ModelShape
from .timing import here
from .work import StepWork, total_seconds

SEED = 16
HEAD = [
    "requests a second",
    "requests/s",
    "output tokens/s",
    "first token p50, ms",
    "p99, ms",
    "inter-token p50, ms",
    "p99, ms",
    "device idle",
]
TINY_SERVED = replace(TINY, vocab_size=512)  # more than the 256 bytes that a tokenizer begins with
TINY_SETTINGS = {"kernels": "torch", "kv_cache_bytes": "4MiB"}
Steps = Sequence[tuple[Span, StepWork]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is served, and what it is held against."""

    model: ModelShape
    dtype: torch.dtype
    ceiling: Roofline

    def seconds(self, works: Sequence[StepWork]) -> float:
        return total_seconds(works, self.model, self.dtype, self.ceiling)


@dataclass(frozen=True, slots=True)
class Run:
    """All requests at one rate, as their client saw them."""

    rate: float  # requests a second
    starts_s: list[float]
    exchanges: list[Exchange]
    figures: Figures


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds since both processes were started."""

    ready_s: float
    first_token_s: float


def starts_of(rate: float, count: int) -> list[float]:
    """Poisson arrivals in seconds; all at once where the rate is infinite."""
    rng = Random(SEED)
    return list(accumulate(rng.expovariate(rate) if rate < math.inf else 0.0 for _ in range(count)))


def serve(job: Job, rates: Sequence[float], steps_file: Path) -> tuple[StartUp, list[Run]]:
    """One server for all rates. What is seldom done for the first time then is done before: as
    many requests at once as there are. Raises BenchmarkError."""
    requests, started = job.requests(), time.perf_counter()
    program = ("-m", "gpu.metered_worker", str(steps_file))
    with servers(job, program) as running:
        ready_s = time.perf_counter() - started
        (first,) = drive_at(running.port, job, requests[:1], [0.0])
        start_up = StartUp(ready_s, first.read().arrivals_s[0] - started)
        print(f"ready in {ready_s:.1f} s", flush=True)
        drive(running.port, job, [_other(request, job.vocab_size) for request in requests])
        return start_up, [_run(running, job, requests, rate) for rate in rates]


def _other(request: Request, vocab_size: int) -> Request:
    """As long, and with no beginning in common."""
    ids = [1 + (token_id + 1) % (vocab_size - 1) for token_id in request.prompt_token_ids]
    return Request(ids, request.num_output_tokens)


def _run(running: Servers, job: Job, requests: Sequence[Request], rate: float) -> Run:
    starts_s = starts_of(rate, len(requests))
    meter = LoadMeter([os.getpid(), *running.pids])
    answers = drive_at(running.port, job, requests, starts_s)
    load = meter.read()
    exchanges = [answer.read() for answer in answers]
    run = Run(rate, starts_s, exchanges, Measured(exchanges, load).figures())
    print(f"{rate:g} requests a second: {run.figures.in_short}", flush=True)
    return run


def busy_times(exchanges: Sequence[Exchange]) -> list[Span]:
    """When at least one request was unanswered."""
    times: list[Span] = []
    for one in sorted(exchanges, key=lambda exchange: exchange.submitted_s):
        end_s = one.arrivals_s[-1]
        if times and one.submitted_s <= times[-1].end_s:
            times[-1] = Span(times[-1].begin_s, max(times[-1].end_s, end_s))
        else:
            times.append(Span(one.submitted_s, end_s))
    return times


def idle_share(times: Sequence[Span], steps: Sequence[Span]) -> float:
    """Of `times`, in which no step was at work on the device."""
    busy_s = sum(
        max(0.0, min(time.end_s, step.end_s) - max(time.begin_s, step.begin_s))
        for time in times
        for step in steps
    )
    return 1 - busy_s / sum(time.end_s - time.begin_s for time in times)


def rows_of(setup: Setup, run: Run, steps: Steps) -> Iterator[list[str]]:
    """What was measured; then what a device with this roofline does with the same steps, if nothing
    is between them, and with a prompt that it has to itself."""
    figures, times = run.figures, busy_times(run.exchanges)
    own = [step for step in steps if times[0].begin_s <= step[0].begin_s <= times[-1].end_s]
    if not own:
        raise BenchmarkError("the worker's steps are not of the time that the client measured")
    latencies = (figures.ttft_p50_ms, figures.ttft_p99_ms, figures.itl_p50_ms, figures.itl_p99_ms)
    yield [
        f"{run.rate:g}",
        f"{figures.num_requests / figures.duration_s:.1f}",
        f"{figures.output_tokens_per_s:,.0f}",
        *(f"{latency:.2f}" for latency in latencies),
        f"{idle_share(times, [span for span, _ in own]):.1%}",
    ]
    floor_s = setup.seconds([work for _, work in own])
    least_s = max(floor_s, run.starts_s[-1])
    prompt_ms = 1000 * min(_alone_s(setup, exchange.request) for exchange in run.exchanges)
    step_ms = 1000 * floor_s / len(own)
    yield [
        "its roofline",
        f"{figures.num_requests / least_s:.1f}",
        f"{figures.num_output_tokens / least_s:,.0f}",
        *(f"{ms:.2f}" for ms in (prompt_ms, prompt_ms, step_ms, step_ms)),
        "0.0%",
    ]


def _alone_s(setup: Setup, request: Request) -> float:
    """To read the prompt in one step."""
    count = len(request.prompt_token_ids)
    return setup.seconds([StepWork(count, 1, count, count * (count + 1) // 2)])


def job_of(chosen: argparse.Namespace, folder: Path) -> Job:
    job = Job(
        folder=str(folder),
        workload_name="8/4" if chosen.tiny else "512/128",
        policy="continuous",
        limit=None if chosen.tiny else chosen.requests,
        max_num_batched_tokens=64 if chosen.tiny else chosen.max_num_batched_tokens,
        max_model_len=64 if chosen.tiny else 1024,
        num_threads=None,
        dtype="auto",
        timeout_s=chosen.timeout,
    )
    seats = {} if chosen.tiny else {"max_num_seqs": str(chosen.max_num_seqs)}
    without_gpu = {} if torch.cuda.is_available() else TINY_SETTINGS
    return replace(job, given={**seats, **without_gpu})


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    model = TINY_SERVED if chosen.tiny else MODELS[chosen.model]
    sizes = roofline.sizes(is_tiny=chosen.tiny)
    setup = Setup(model, dtype_for(device), roofline.measured(device, sizes))
    copied_per_s = roofline.host_copy_bytes_per_s(device, sizes)
    with tempfile.TemporaryDirectory(prefix="chairlift-serve-", dir=chosen.folder) as name:
        folder, steps_file = Path(name) / "model", Path(name) / "steps.json"
        num_bytes = checkpoint.write(folder, model, 1024, setup.dtype, device)
        torch.cuda.empty_cache()  # for the worker, which takes what it finds
        try:
            start_up, runs = serve(job_of(chosen, folder), chosen.rates, steps_file)
            steps = msgspec.json.decode(steps_file.read_bytes(), type=list[tuple[Span, StepWork]])
            rows = [row for run in runs for row in rows_of(setup, run, steps)]
        except BenchmarkError as error:
            print(f"gpu.serve: {error}", file=sys.stderr)
            return 1
    print(
        f"{model.name}, {setup.dtype}: {len(runs[0].exchanges)} requests; "
        f"ceilings {setup.ceiling}\n"
        f"start-up: ready after {start_up.ready_s:.1f} s, first token after "
        f"{start_up.first_token_s:.1f} s; roofline {num_bytes / copied_per_s:.1f} s, to copy "
        f"{num_bytes / 1e9:.1f} GB of weights to the device\n"
        "idle: as long as a request is unanswered; a first token's roofline is that of a prompt "
        "alone\n"
    )
    print(aligned([HEAD, *rows]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpu.serve", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="store_true", help="to see that it runs, on any machine")
    add("--model", choices=MODELS, default="Qwen3-0.6B")
    add("--folder", type=Path, help="where the checkpoint is made, and removed: /dev/shm")
    add("--requests", type=int, help="the first so many of 500")
    add("--rates", type=float, nargs="+", default=[math.inf, 16.0], help="requests a second")
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=int, default=2048)
    add("--timeout", type=float, default=300.0, help="seconds for each rate, and to start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
