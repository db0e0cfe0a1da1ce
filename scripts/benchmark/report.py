"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from .machine import Machine


class Section(Protocol):
    """What one mode has measured of one thing; grows until the mode is done."""

    @property
    def title(self) -> str: ...

    @property
    def about(self) -> str: ...

    def table(self) -> list[list[str]]: ...

    def save(self, folder: Path) -> list[Path]:
        """Pictures of it, if there are any."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """All that one command has measured."""

    command: str
    machine: Machine
    cases: list[Section]

    def put(self, case: Section) -> None:
        """New, or grown since it was put here."""
        if not any(case is known for known in self.cases):
            self.cases.append(case)

    def markdown(self) -> str:
        machine = self.machine
        parts = [
            f"`{self.command}`",
            f"{machine.cpu}, {machine.num_cores} cores, {machine.memory_gib} GiB, "
            f"{machine.system}; Python {machine.python}, torch {machine.torch}; {machine.date}.",
        ]
        for case in self.cases:
            parts += [f"## {case.title}", case.about, aligned(case.table())]
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
    ratios: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> list[list[str]]:
    """A column for each of the figures and one for each of the ratios; a row for each label of
    which any has the figure."""
    rows = [["", *columns, *ratios]]
    for name, (label, decimals) in labels.items():
        values = [getattr(figures, name) for figures in columns.values()]
        if any(value is not None for value in values):
            shown = ["" if value is None else f"{value:,.{decimals}f}" for value in values]
            rows.append([label, *shown, *(ratio(name) for ratio in ratios.values())])
    return rows


def repeats(num_runs: int) -> str:
    return f"; medians of {num_runs} runs each" if num_runs > 1 else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
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
