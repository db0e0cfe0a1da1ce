"""Throughput against latency as load rises: one running server, more and more requests at a time.

The loop is closed: each caller asks again as soon as it is answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import options as shared
from .figures import Figures, medians
from .job import Job, Policy
from .options import Modes, job_of, positive
from .over_http import Served, measure_served
from .plot import plot_load
from .processes import servers
from .report import repeats

LEVELS = (1, 2, 4, 8, 16, 32)
COLUMNS = {  # and the decimals to show
    "output_tokens_per_s": ("output tokens/s", 1),
    "ttft_p50_ms": ("time to first token p50, ms", 1),
    "ttft_p99_ms": ("p99, ms", 1),
    "itl_p50_ms": ("inter-token latency p50, ms", 1),
    "itl_p99_ms": ("p99, ms", 1),
    "foreign_cpu_percent": ("other programs, %", 1),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement under one load."""

    policy: Policy
    concurrency: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class LoadCase:
    """Every point, in the order they were measured."""

    model: str
    workload: str
    points: list[Point]

    @property
    def title(self) -> str:
        return f"load-{Path(self.model).name}-{self.workload}"

    @property
    def about(self) -> str:
        num_runs = max(len(figures) for figures in self._runs().values())
        return f"Model {self.model}, lengths as in workload {self.workload}{repeats(num_runs)}."

    def medians(self) -> dict[str, dict[int, Figures]]:
        """By policy and load."""
        found: dict[str, dict[int, Figures]] = {}
        for (policy, concurrency), figures in sorted(self._runs().items()):
            found.setdefault(policy, {})[concurrency] = medians(figures)
        return found

    def table(self) -> list[list[str]]:
        rows = [["policy", "at a time", *(label for label, _ in COLUMNS.values())]]
        for policy, by_load in self.medians().items():
            for concurrency, figures in by_load.items():
                values = [
                    f"{getattr(figures, name):,.{decimals}f}"
                    for name, (_, decimals) in COLUMNS.items()
                ]
                rows.append([policy, str(concurrency), *values])
        return rows

    def save(self, folder: Path) -> list[Path]:
        plot = folder / f"{self.title}.png"
        plot_load(self.title, self.medians(), plot)
        return [plot]

    def _runs(self) -> dict[tuple[str, int], list[Figures]]:
        runs: dict[tuple[str, int], list[Figures]] = {}
        for point in self.points:
            runs.setdefault((point.policy, point.concurrency), []).append(point.figures)
        return runs


def add_parser(modes: Modes) -> None:
    text = "over HTTP with more and more requests at a time: throughput against latency"
    parents = [shared.common(), shared.engine("S"), shared.workload()]
    parents.append(shared.policies(["continuous", "static"]))
    parser = modes.add_parser("load", help=text, parents=parents)
    shown = ",".join(map(str, LEVELS))
    parser.add_argument(
        "--concurrency",
        type=_levels,
        default=LEVELS,
        metavar="N,N",
        help=f"requests at a time (default: {shown})",
    )
    parser.set_defaults(measure=measure)


def _levels(text: str) -> list[int]:
    return sorted(set(map(positive, text.split(","))))


def measure(options: argparse.Namespace) -> Iterator[LoadCase]:
    """Policies take turns in going first; each has a server of its own for all loads."""
    case = LoadCase(options.model, options.workload, [])
    for repeat in range(options.repeats):
        for policy in options.policies if repeat % 2 == 0 else reversed(options.policies):
            job = job_of(options, options.workload, policy)
            for point in _points(job, options.concurrency):
                case.points.append(point)
                told = f"{policy}, {point.concurrency} at a time: {point.figures.in_short}"
                print(f"bench:   {told}", file=sys.stderr)
                yield case


def _points(job: Job, levels: Sequence[int]) -> Iterator[Point]:
    """The server has seats for the greatest load."""
    with servers(job.under(max(levels))) as running:
        served = Served(running.port, running.pids)
        for level in levels:
            yield Point(job.policy, level, measure_served(served, job.under(level)))
