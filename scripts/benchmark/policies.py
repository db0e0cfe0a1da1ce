"""Continuous against static batching, in process and over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import options as shared
from . import over_http
from .figures import LABELS, Run, medians, ratio
from .job import Job, Policy
from .options import Modes, job_of
from .plot import plot_steps
from .processes import measure_in_process
from .report import repeats, table_of


@dataclass(frozen=True, slots=True)
class Case:
    """A mode, a model and a workload, with every run of every policy, in the order they were."""

    mode: str
    model: str
    workload: str
    runs: list[Run]

    @property
    def title(self) -> str:
        return f"{self.mode}-{Path(self.model).name}-{self.workload}"

    def by_policy(self) -> dict[str, list[Run]]:
        """Static first, as what is compared with."""
        policies = sorted({run.policy for run in self.runs}, reverse=True)
        return {policy: [r for r in self.runs if r.policy == policy] for policy in policies}

    def table(self) -> list[list[str]]:
        """A row for each figure; with both policies, a column says how they compare."""
        columns = {
            policy: medians([run.figures for run in runs])
            for policy, runs in self.by_policy().items()
        }
        if columns.keys() < {"static", "continuous"}:
            return table_of(columns, LABELS)
        compared = partial(ratio, columns["continuous"], columns["static"])
        return table_of(columns, LABELS, {"continuous / static": compared})

    @property
    def about(self) -> str:
        threads = {str(run.num_threads or "torch's default number of") for run in self.runs}
        num_runs = max(len(runs) for runs in self.by_policy().values())
        return (
            f"Model {self.model}, workload {self.workload}, {'/'.join(threads)} threads"
            f"{repeats(num_runs)}."
        )

    def save(self, folder: Path) -> list[Path]:
        if self.mode != "offline":
            return []
        plot = folder / f"{self.title}.png"
        plot_steps(self.title, self.by_policy(), plot)
        return [plot]


def add_parser(modes: Modes) -> None:
    defaults: dict[str, list[Policy]] = {
        "offline": ["continuous", "static"],
        "http": ["continuous"],
    }
    for mode, text in {
        "offline": "the engine alone, continuous against static batching",
        "http": "a real worker and a real frontend, driven by a client on the same machine",
    }.items():
        parents = [shared.common(), shared.engine("S"), shared.workload()]
        parents.append(shared.policies(defaults[mode]))
        modes.add_parser(mode, help=text, parents=parents).set_defaults(measure=measure)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Policies take turns in going first, so that a slow drift of the machine hits both."""
    case = Case(options.mode, options.model, options.workload, [])
    policies: list[Policy] = options.policies
    for repeat in range(options.repeats):
        for policy in policies if repeat % 2 == 0 else reversed(policies):
            run = _measure(options.mode, job_of(options, options.workload, policy))
            case.runs.append(run)
            print(f"bench:   {policy}: {run.figures.in_short}", file=sys.stderr)
            yield case


def _measure(mode: str, job: Job) -> Run:
    return over_http.measure(job) if mode == "http" else measure_in_process("offline", job)
