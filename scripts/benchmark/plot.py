"""Pictures of what continuous batching changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .figures import Figures, Run, Steps, medians

COLORS = {"static": "#b0703c", "continuous": "#2f6f8f"}
LATENCIES = {
    "ttft_p50_ms": "time to first token p50, ms",
    "itl_p50_ms": "inter-token latency p50, ms",
    "itl_p99_ms": "inter-token latency p99, ms",
}


def plot_steps(title: str, by_policy: Mapping[str, Sequence[Run]], file: Path) -> None:
    """Left output tokens per second, right the course of each policy's first run: running
    sequences of all, and below them the tokens of each step, a panel for each policy."""
    figure = plt.figure(figsize=(11, 3.8 + 1.4 * len(by_policy)), layout="constrained")
    heights = (2.4, *(1 for _ in by_policy))
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(1, 3), height_ratios=heights)
    _draw_bars(figure.add_subplot(grid[:, 0]), by_policy)
    courses = {policy: _steps(runs[0]) for policy, runs in by_policy.items()}
    panel = figure.add_subplot(grid[0, 1])
    _draw_running(panel, courses)
    for row, (policy, steps) in enumerate(courses.items(), start=1):
        panel.tick_params(labelbottom=False)
        panel = figure.add_subplot(grid[row, 1], sharex=panel)
        _draw_tokens(panel, policy, steps)
    panel.set_xlabel("seconds")
    _save(figure, title, file)


def _steps(run: Run) -> Steps:
    assert run.steps is not None, "in process every step is seen"
    return run.steps


def _draw_running(axes: Axes, courses: Mapping[str, Steps]) -> None:
    for policy, steps in courses.items():
        edges = [0.0, *steps.end_s]
        axes.stairs(steps.num_running, edges, color=COLORS[policy], label=policy, linewidth=1.2)
    axes.set_ylabel("running sequences")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _draw_tokens(axes: Axes, policy: str, steps: Steps) -> None:
    """Logarithmic: from one decode to a budget full of prompt."""
    edges = [0.0, *steps.end_s]
    axes.stairs(steps.num_tokens, edges, baseline=None, color=COLORS[policy], linewidth=0.8)
    axes.set_ylabel("tokens\nper step")
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.8, 1.25 * max(steps.num_tokens))
    axes.yaxis.set_major_formatter("{x:,g}")


def plot_load(title: str, by_policy: Mapping[str, Mapping[int, Figures]], file: Path) -> None:
    """Throughput to the right, a latency upwards; each point is a number of requests at a time."""
    figure, panels = plt.subplots(1, len(LATENCIES), figsize=(13, 4.2), layout="constrained")
    for axes, (name, label) in zip(panels, LATENCIES.items(), strict=True):
        for policy, by_load in by_policy.items():
            _draw_latency(axes, policy, by_load, name)
        axes.set_xlabel("output tokens/s")
        axes.margins(x=0.08)
        axes.set_xlim(left=0)
        axes.set_ylabel(label)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    panels[0].legend(loc="upper left", frameon=False)
    _save(figure, title, file)


def _draw_latency(axes: Axes, policy: str, by_load: Mapping[int, Figures], name: str) -> None:
    rates = [figures.output_tokens_per_s for figures in by_load.values()]
    latencies = [getattr(figures, name) for figures in by_load.values()]
    color = COLORS[policy]
    axes.plot(rates, latencies, "o-", color=color, label=policy, markersize=4)
    for load, place in zip(by_load, zip(rates, latencies, strict=True), strict=True):
        axes.annotate(
            str(load), place, (4, -9), textcoords="offset points", fontsize=8, color=color
        )


def _draw_bars(axes: Axes, by_policy: Mapping[str, Sequence[Run]]) -> None:
    figures = [medians([run.figures for run in runs]) for runs in by_policy.values()]
    rates = [one.output_tokens_per_s for one in figures]
    bars = axes.bar(list(by_policy), rates, color=[COLORS[policy] for policy in by_policy])
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_ylabel("output tokens/s")
    axes.margins(y=0.12)


def _save(figure: Figure, title: str, file: Path) -> None:
    figure.suptitle(title)
    figure.savefig(file, dpi=130)
    plt.close(figure)
