"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from .figures import Figures, Run, medians
from .frontend import FrontendRun
from .frontend_figures import LABELS as FRONTEND_LABELS
from .frontend_figures import FrontendFigures
from .machine import Machine
from .plot import plot_steps
from .scenarios import Scenario

LABELS = {  # and the decimals to show
    "num_requests": ("requests", 0),
    "num_prompt_tokens": ("prompt tokens", 0),
    "num_output_tokens": ("output tokens", 0),
    "duration_s": ("duration, s", 2),
    "output_tokens_per_s": ("output tokens/s", 1),
    "total_tokens_per_s": ("prompt and output tokens/s", 1),
    "ttft_p50_ms": ("time to first token p50, ms", 1),
    "ttft_p99_ms": ("time to first token p99, ms", 1),
    "itl_p50_ms": ("inter-token latency p50, ms", 1),
    "itl_p99_ms": ("inter-token latency p99, ms", 1),
    "tokens_per_arrival": ("output tokens per arrival", 3),
    "num_steps": ("steps", 0),
    "tokens_per_step": ("prompt and output tokens per step", 1),
    "outside_forward_percent": ("step time outside the forward pass, %", 1),
    "worker_peak_mib": ("worker's memory, peak, MiB", 0),
    "worker_end_mib": ("worker's memory, at the end, MiB", 0),
    "frontend_peak_mib": ("frontend's memory, peak, MiB", 0),
    "frontend_end_mib": ("frontend's memory, at the end, MiB", 0),
    "foreign_cpu_percent": ("other programs' use of the machine, %", 1),
    "load_average": ("load average at the start", 2),
}
COMPARED = {
    "duration_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "num_steps",
    "tokens_per_step",
}


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
        has_both = columns.keys() >= {"static", "continuous"}
        return table_of(columns, LABELS, partial(_ratio, columns) if has_both else None)

    @property
    def about(self) -> str:
        threads = {str(run.num_threads or "torch's default number of") for run in self.runs}
        num_runs = max(len(runs) for runs in self.by_policy().values())
        return (
            f"Model {self.model}, workload {self.workload}, {'/'.join(threads)} threads"
            f"{_repeats(num_runs)}."
        )

    def save(self, folder: Path) -> list[Path]:
        """Pictures of it."""
        if self.mode != "offline":
            return []
        plot = folder / f"{self.title}.png"
        plot_steps(self.title, self.by_policy(), plot)
        return [plot]


@dataclass(frozen=True, slots=True)
class FrontendCase:
    """Every run of every variant."""

    title: str
    runs: list[FrontendRun]

    def table(self) -> list[list[str]]:
        by_variant: dict[str, list[FrontendFigures]] = {}
        for run in self.runs:
            by_variant.setdefault(run.job.variant, []).append(run.figures)
        columns = {variant: medians(figures) for variant, figures in by_variant.items()}
        return table_of(columns, FRONTEND_LABELS)

    @property
    def about(self) -> str:
        num_runs = len(self.runs) // len({run.job.variant for run in self.runs})
        return (
            f"A token a stream every {self.runs[0].job.step_ms:g} ms, the frontend alone on its "
            f"core{_repeats(num_runs)}."
        )

    def save(self, folder: Path) -> list[Path]:
        return []


@dataclass(frozen=True, slots=True)
class Report:
    """All cases of one command."""

    command: str
    machine: Machine
    cases: list[Case | FrontendCase | Scenario]

    def markdown(self) -> str:
        machine = self.machine
        parts = [
            f"`{self.command}`",
            f"{machine.cpu}, {machine.num_cores} cores, {machine.memory_gib} GiB, "
            f"{machine.system}; Python {machine.python}, torch {machine.torch}; {machine.date}.",
        ]
        for case in self.cases:
            parts += [f"## {case.title}", case.about, _aligned(case.table())]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """The files that were written."""
        folder.mkdir(parents=True, exist_ok=True)
        table, results = folder / "results.md", folder / "results.json"
        table.write_text(self.markdown(), encoding="utf-8")
        results.write_bytes(msgspec.json.encode(self) + b"\n")
        return [table, results, *(file for case in self.cases for file in case.save(folder))]


def table_of(
    columns: Mapping[str, Any],
    labels: Mapping[str, tuple[str, int]],
    ratio: Callable[[str], str] | None = None,
) -> list[list[str]]:
    """A column for each of the figures, and one that compares them; a row for each label of which
    all have the figure."""
    rows = [["", *columns, *(["continuous / static"] if ratio else [])]]
    for name, (label, decimals) in labels.items():
        values = [getattr(figures, name) for figures in columns.values()]
        if None not in values:
            compared = [ratio(name)] if ratio else []
            rows.append([label, *(f"{value:,.{decimals}f}" for value in values), *compared])
    return rows


def _repeats(num_runs: int) -> str:
    return f"; medians of {num_runs} runs each" if num_runs > 1 else ""


def _ratio(columns: dict[str, Figures], name: str) -> str:
    static = getattr(columns["static"], name)
    if name not in COMPARED or not static:
        return ""
    return f"{getattr(columns['continuous'], name) / static:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads as well without rendering; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [_line(row, widths) for row in rows]
    rule = "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths))
    return "\n".join([head, f"|{rule}|", *body])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"
