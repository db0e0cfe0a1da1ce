"""What it costs the streams that somebody watches the steps. Over HTTP, by turns.

The worker has cores to itself, so that what a browser draws on the others is not taken for the
feed's cost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import options as shared
from .errors import BenchmarkError
from .job import Job
from .machine import LoadMeter
from .options import Modes, job_of
from .over_http import Served, drive, measure_served
from .processes import Servers, servers
from .scenarios import Rows, Scenario

MUST = ">= 0.98"
STOP_S = 10.0
KINDS = {"feed": "one reader of /watch", "page": "the page open in Chromium"}


def add_parser(modes: Modes) -> None:
    text = "the same requests with nobody, a reader of the steps, and the page in a browser"
    parents = [shared.common(), shared.engine("S"), shared.workload()]
    one = modes.add_parser("feed", help=text, parents=parents)
    one.set_defaults(measure=measure, num_threads=1)


def measure(options: argparse.Namespace) -> Iterator[Scenario]:
    """One worker and one frontend; each round has all of them, one after the other."""
    job = job_of(options, options.workload)
    title = f"feed-{Path(options.model).name}-{options.workload}"
    with servers(job) as running:
        own = _part(running, options.num_threads)
        served = Served(running.port, running.pids)
        drive(running.port, job, job.warm_up())
        meter = LoadMeter([os.getpid(), *running.pids])
        rounds = [_round(served, job) for _ in range(options.repeats)]
        foreign = meter.read().foreign_cpu_percent
    about = (
        f"{options.repeats} rounds, medians; ratios are of pairs. The worker had {own} to itself. "
        f"Other programs, the browser among them, used {foreign:.1f} % of the CPU."
    )
    yield Scenario(title, about, _rows(rounds))


def _part(running: Servers, num_threads: int) -> str:
    """The worker gets as many cores as it has threads; this program, the frontend and whoever
    watches share the others. Raises BenchmarkError when none is left for them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= num_threads:
        raise BenchmarkError(f"{num_threads} of {len(cores)} cores: lower --num-threads")
    own, others = cores[:num_threads], cores[num_threads:]
    for pid, kept in ((running.worker_pid, own), (running.frontend_pid, others)):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), kept)
    os.sched_setaffinity(0, others)
    return "a core" if num_threads == 1 else f"{num_threads} cores"


def _round(served: Served, job: Job) -> dict[str, float]:
    """Output tokens per second by who watches, nobody first."""
    rates = {"": measure_served(served, job).output_tokens_per_s}
    for kind in KINDS:
        with _watching(kind, f"http://127.0.0.1:{served.port}"):
            rates[kind] = measure_served(served, job).output_tokens_per_s
    return rates


@contextmanager
def _watching(kind: str, url: str) -> Iterator[None]:
    """Raises BenchmarkError when it can't."""
    command = [sys.executable, "-m", f"{__package__}.feed_reader", kind, url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin and process.stdout, "both are pipes"
        if process.stdout.readline() != b"watching\n":
            raise BenchmarkError(f"{KINDS[kind]}: it ended with code {process.wait(STOP_S)}")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(STOP_S)


def _rows(rounds: list[dict[str, float]]) -> Rows:
    rows: Rows = [("tokens/s, nobody watching", statistics.median(r[""] for r in rounds), "")]
    for kind, told in KINDS.items():
        rows.append((f"tokens/s, {told}", statistics.median(r[kind] for r in rounds), ""))
        ratio = statistics.median(r[kind] / r[""] for r in rounds)
        rows.append(("ratio", ratio, MUST))
    return rows
