"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from .figures import Figures, Run, medians
from .machine import Machine
from .plot import plot_steps

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
        columns = {policy: medians(runs) for policy, runs in self.by_policy().items()}
        has_both = columns.keys() >= {"static", "continuous"}
        rows = [["", *columns, *(["continuous / static"] if has_both else [])]]
        for field in fields(Figures):
            values = [getattr(figures, field.name) for figures in columns.values()]
            if None in values:
                continue
            label, decimals = LABELS[field.name]
            row = [label, *(f"{value:,.{decimals}f}" for value in values)]
            if has_both:
                row.append(_ratio(columns, field.name))
            rows.append(row)
        return rows


@dataclass(frozen=True, slots=True)
class Report:
    """All cases of one command."""

    command: str
    machine: Machine
    cases: list[Case]

    def markdown(self) -> str:
        machine = self.machine
        parts = [
            f"`{self.command}`",
            f"{machine.cpu}, {machine.num_cores} cores, {machine.memory_gib} GiB, "
            f"{machine.system}; Python {machine.python}, torch {machine.torch}; {machine.date}.",
        ]
        for case in self.cases:
            parts += [f"## {case.title}", _about(case), _aligned(case.table())]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """The files that were written."""
        folder.mkdir(parents=True, exist_ok=True)
        table, results = folder / "results.md", folder / "results.json"
        table.write_text(self.markdown(), encoding="utf-8")
        results.write_bytes(msgspec.json.encode(self) + b"\n")
        plots = []
        for case in self.cases:
            if case.mode == "offline":
                plots.append(folder / f"{case.title}.png")
                plot_steps(case.title, case.by_policy(), plots[-1])
        return [table, results, *plots]


def _about(case: Case) -> str:
    threads = {str(run.num_threads or "torch's default number of") for run in case.runs}
    num_runs = max(len(runs) for runs in case.by_policy().values())
    repeats = f"; medians of {num_runs} runs each" if num_runs > 1 else ""
    return f"Model {case.model}, workload {case.workload}, {'/'.join(threads)} threads{repeats}."


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
