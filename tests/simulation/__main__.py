"""scripts/simulate: many seeds on all cores, or one of them word for word."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

from .runs import Failure, replay, run_seeds

CHUNK = 100  # seeds
MAX_FAILURES = 5
PROGRESS_S = 10.0
TOTALS = {
    "seeds": "simulations",
    "simulated_h": "simulated hours",
    "requests": "requests",
    "streams": "streams (with those that joined, watched and took over)",
    "worker_deaths": "deaths of the worker",
    "lost_messages": "lost messages",
    "resets": "connections reset",
    "freezes": "frontends frozen",
    "frontend_deaths": "frontends killed",
    "takeovers": "takeovers",
    "cancels": "cancelled",
    "turns": "turns of the worker's loop",
}

Chunk = tuple[Counter[str], list[Failure]]


def run_chunk(first: int, count: int) -> Chunk:
    counts: Counter[str] = Counter()
    failures = run_seeds(range(first, first + count), counts)
    return counts, [*islice(failures, MAX_FAILURES)]


class Progress:
    """What is done so far, told now and then."""

    def __init__(self, num_seeds: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self._num_seeds = num_seeds
        self._started = self._told_at = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, chunk: Chunk) -> None:
        counts, failures = chunk
        self.counts += counts
        self.failures += failures
        for failure in failures:
            print(failure, flush=True)
        if time.monotonic() - self._told_at > PROGRESS_S:
            self._told_at = time.monotonic()
            done = self.counts["seeds"]
            print(f"{done} of {self._num_seeds} seeds, {self.seconds:.0f} s", file=sys.stderr)

    def table(self) -> str:
        counts = self.counts | Counter(simulated_h=round(self.counts["simulated_s"] / 3600))
        rows = [f"| {words} | {counts[name]:,} |" for name, words in TOTALS.items()]
        rows.append(f"| violations | {len(self.failures)} |")
        rows.append(f"| seconds | {self.seconds:,.0f} |")
        return "\n".join(["| in all | |", "|---|---:|", *rows])


def run_all(first: int, num_seeds: int, num_jobs: int) -> Progress:
    """On so many processes; ends early when it has failed often enough."""
    progress = Progress(num_seeds)
    last = first + num_seeds
    starts = iter(range(first, last, CHUNK))
    with ProcessPoolExecutor(num_jobs) as pool:
        running: set[Future[Chunk]] = set()
        while True:
            for start in islice(starts, 2 * num_jobs - len(running)):
                running.add(pool.submit(run_chunk, start, min(CHUNK, last - start)))
            if not running:
                return progress
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                progress.add(future.result())
            if len(progress.failures) >= MAX_FAILURES:
                starts = iter(())


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print all that happens in one")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        replay(arguments.replay)
        return 0
    progress = run_all(arguments.first, arguments.seeds, arguments.jobs)
    print(progress.table())
    return int(bool(progress.failures))


if __name__ == "__main__":
    raise SystemExit(main())
