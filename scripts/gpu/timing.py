"""How long calls take: on a GPU by its own events, on a CPU by the clock."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch

Call = Callable[[], object]

NUM_REPEATS = 20
NUM_CPU_REPEATS = 2  # figures that mean nothing need no median
WARM_UP_S = 0.3
MIN_CALLS = 8  # in one graph, whose own launch is then a small part


def here(*, is_tiny: bool) -> torch.device:
    """The GPU, which only a tiny run can do without: a CPU's figures mean nothing, and one of its
    cores is enough."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not is_tiny:
        sys.exit(
            f"there is no CUDA device that torch {torch.__version__} can use: with --tiny this "
            "runs on a CPU, to see that it runs"
        )
    torch.set_num_threads(1)
    return torch.device("cpu")


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def seconds_per_call(calls: Sequence[Call], device: torch.device) -> float:
    """The median of some rounds, each of which makes all the calls after one another.

    On a GPU a round is one graph, so that no launch from Python is counted. Calls that read
    different memory, more than the caches hold, find it as a model's layers find their weights.
    """
    round_ = list(islice(cycle(calls), max(len(calls), MIN_CALLS)))
    timed = _graph_seconds if device.type == "cuda" else _clock_seconds
    return timed(round_) / len(round_)


def seconds_on_host(call: Call, num_repeats: int = 200) -> float:
    """The median by the clock of the process, whatever the call itself waits for."""
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """The calls as one graph, replayed once. They must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made at the first call can't be made in a capture
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _graph_seconds(calls: Sequence[Call]) -> float:
    graph = captured(calls)
    _until_clocks_are_up(graph)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * NUM_REPEATS)]
    pairs = list(zip(events[::2], events[1::2], strict=True))
    for start, end in pairs:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1000


def _until_clocks_are_up(graph: torch.cuda.CUDAGraph) -> None:
    """An idle device takes a while: a copy measured at once was a third slower."""
    deadline = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < deadline:
        graph.replay()
        torch.cuda.synchronize()


def _clock_seconds(calls: Sequence[Call]) -> float:
    def all_calls() -> None:
        for call in calls:
            call()

    all_calls()
    return seconds_on_host(all_calls, NUM_CPU_REPEATS)
