"""A run as a table for people and as JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from benchmark.machine import Machine

from .outcome import Outcome

HEAD = (
    "scenario",
    "what was done",
    "whole",
    "lost / doubled / wrong / stuck",
    "pause, median / max",
    "p99 ratio",
    "RSS, MiB",
    "other figures",
    "verdict",
)


class Report(msgspec.Struct):
    command: str
    machine: Machine
    outcomes: dict[str, Outcome]

    def table(self) -> str:
        rows = [HEAD, ("---",) * len(HEAD)]
        rows += [_row(name, outcome) for name, outcome in self.outcomes.items()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def failures(self) -> str:
        """At most some of each scenario's."""
        return "\n".join(
            f"{name}: {failure}"
            for name, outcome in self.outcomes.items()
            for failure in outcome.failures[:10]
        )

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self)))


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    wrong = (outcome.num_lost, outcome.num_doubled, outcome.num_wrong, outcome.num_stuck)
    pauses, ratio = outcome.pauses, outcome.itl_p99_ratio
    figures = outcome.figures | {"foreign_cpu_%": round(outcome.foreign_cpu_percent, 1)}
    whole = f"{outcome.num_whole:,}"
    return (
        name,
        outcome.done,
        whole + (f" ({outcome.num_refused:,} refused)" if outcome.num_refused else ""),
        " / ".join(map(str, wrong)),
        f"{pauses.median_s:.2f} / {pauses.max_s:.2f} s" if pauses else "",
        f"{ratio:.2f}" if ratio else "",
        _memory(outcome.rss_before_mib, outcome.rss_after_mib),
        ", ".join(f"{key} {value:g}" for key, value in figures.items()),
        "holds" if outcome.is_good else f"FAILS ({len(outcome.failures)})",
    )


def _memory(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The worker's, and of the frontends the one that grew most."""
    both = {name: after[name] - before[name] for name in before if name in after}
    others = [name for name in both if name != "worker"]
    shown = [name for name in ("worker", max(others, key=both.__getitem__, default="")) if name]
    return ", ".join(f"{n} {before[n]:g} → {after[n]:g}" for n in shown if n in both)
