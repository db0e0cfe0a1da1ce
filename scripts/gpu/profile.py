"""Where the time of some steps on a device goes: to which kernels, and to none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity

NUM_STEPS = 8
NUM_ROWS = 20
NAME_LENGTH = 70
HEAD = ["kernel", "a step", "µs a step", "of the step"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One that ran, or a copy, in microseconds of the device's clock."""

    name: str
    launch: int  # the same for all kernels of one replay of a graph
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing ran."""

    us: float
    is_in_graph: bool  # the kernels before and after it were launched as one


def kernels_of(run: Callable[[], object]) -> list[Kernel]:
    """All that the device has done of what `run` launches."""
    torch.cuda.synchronize()  # what runs already would be seen in part
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return [
        Kernel(event.name, event.id, event.time_range.start, event.time_range.end)
        for event in found.events() or []
        if event.device_type.name == "CUDA"
    ]


def gaps(kernels: Sequence[Kernel]) -> Iterator[Gap]:
    """Between the first kernel's start and the last one's end; those at once are no gap."""
    first, *rest = sorted(kernels, key=lambda kernel: kernel.start_us)
    last = first  # to end, of those before
    for kernel in rest:
        if kernel.start_us > last.end_us:
            yield Gap(kernel.start_us - last.end_us, kernel.launch == last.launch)
        last = max(last, kernel, key=lambda one: one.end_us)


def span_us(kernels: Sequence[Kernel]) -> float:
    """From the first one's start to the last one's end."""
    ends = [kernel.end_us for kernel in kernels]
    return max(ends) - min(kernel.start_us for kernel in kernels)


def rows_of(kernels: Sequence[Kernel], num_steps: int) -> list[list[str]]:
    """The kernels that take longest, all of them, and the gaps. Where kernels overlap, they and
    the gaps are more than the step."""
    whole = span_us(kernels)

    def row(name: str, times: Sequence[float]) -> list[str]:
        us = sum(times)
        counts = f"{len(times) / num_steps:.1f}", f"{us / num_steps:.1f}"
        return [name, *counts, f"{us / whole:.1%}"]

    by_name: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        by_name[kernel.name].append(kernel.end_us - kernel.start_us)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    rows = [row(short(name), times) for name, times in longest[:NUM_ROWS]]
    if others := [time for _, times in longest[NUM_ROWS:] for time in times]:
        rows.append(row(f"{len(longest) - NUM_ROWS} others", others))
    between = list(gaps(kernels))
    return [
        *rows,
        row("all kernels", [time for times in by_name.values() for time in times]),
        row("device idle between kernels", [gap.us for gap in between]),
        row("of that, within a graph", [gap.us for gap in between if gap.is_in_graph]),
        row("of that, between launches", [gap.us for gap in between if not gap.is_in_graph]),
    ]


def short(name: str) -> str:
    """In one cell, as far as it tells a kernel from another."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("|", "/")
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def step_ms(kernels: Sequence[Kernel], num_steps: int) -> float:
    """Which is longer than without a profiler, that has to note each kernel."""
    return span_us(kernels) / num_steps / 1000
