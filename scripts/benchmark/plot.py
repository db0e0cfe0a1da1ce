"""A picture of what continuous batching changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .figures import Run, medians

COLORS = {"static": "#b0703c", "continuous": "#2f6f8f"}


def plot_steps(title: str, by_policy: Mapping[str, Sequence[Run]], file: Path) -> None:
    """Left output tokens per second, right the running sequences over time, first run of each."""
    figure, (bars, course) = plt.subplots(
        1, 2, figsize=(11, 3.8), width_ratios=(1, 3), layout="constrained"
    )
    figure.suptitle(title)
    _draw_bars(bars, by_policy)
    _draw_course(course, by_policy)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _draw_bars(axes: Axes, by_policy: Mapping[str, Sequence[Run]]) -> None:
    figures = [medians([run.figures for run in runs]) for runs in by_policy.values()]
    rates = [one.output_tokens_per_s for one in figures]
    bars = axes.bar(list(by_policy), rates, color=[COLORS[policy] for policy in by_policy])
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_ylabel("output tokens/s")
    axes.margins(y=0.12)


def _draw_course(axes: Axes, by_policy: Mapping[str, Sequence[Run]]) -> None:
    for policy, runs in by_policy.items():
        steps = runs[0].steps
        assert steps is not None, "in process every step is seen"
        edges = [0.0, *steps.end_s]
        axes.stairs(steps.num_running, edges, color=COLORS[policy], label=policy, linewidth=1.2)
    axes.set_xlabel("seconds")
    axes.set_ylabel("running sequences")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
