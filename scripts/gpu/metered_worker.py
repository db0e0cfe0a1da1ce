"""`chairlift worker` that keeps when its device was at work, and on what:
`python -m gpu.metered_worker OUT worker ...`. OUT gets the steps when the worker ends.

Without a GPU its kernels are interpreted, so that all of this is seen to run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from chairlift import __main__ as command

if TYPE_CHECKING:
    from chairlift.shared.settings import WorkerSettings
    from chairlift.worker.pulse import Pulse
    from chairlift.worker.quarantine import Quarantine

    from .engines import MeteredExecutor
    from .work import StepWork


@dataclass(frozen=True, slots=True)
class Span:
    """From the first of a step's launches to the end of its last, in seconds of the host's
    monotonic clock, as `time.perf_counter` tells it to every process of a machine."""

    begin_s: float
    end_s: float


class DeviceClock:
    """Moments at which the device has done all that was launched before. To mark one waits for
    nothing."""

    def __init__(self) -> None:
        import torch

        self._is_gpu = torch.cuda.is_available()
        if self._is_gpu:
            torch.cuda.synchronize()
        self._began_s, self._began = time.perf_counter(), self.mark()

    def mark(self) -> Any:
        """An event on a GPU, else the time by the host's clock."""
        import torch

        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """When they were, in order, by the host's clock. Each is counted from the one before it: a
        long time in milliseconds has no room for microseconds, as a float32."""
        if not self._is_gpu:
            return list(marks)
        for mark in marks[-1:]:
            mark.synchronize()
        pairs = pairwise([self._began, *marks])
        elapsed_s = (earlier.elapsed_time(later) / 1000 for earlier, later in pairs)
        return list(accumulate(elapsed_s, initial=self._began_s))[1:]


class Meter:
    """Of the steps of one worker. What a step sends to the device beforehand, and copies from it
    afterwards, is none of its launches: it counts as idleness, some microseconds of it. A step of a
    size that has not come before is launched kernel by kernel, and the waits between them are not
    seen."""

    def __init__(self) -> None:
        self._executor: MeteredExecutor | None = None
        self._clock: DeviceClock | None = None
        self._began: Any = None
        self._marks: list[Any] = []  # of a step two

    def executor(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """CudaPlatform.executor, whose executor notes its plans."""
        from .engines import MeteredExecutor

        def metered(*arguments: Any) -> MeteredExecutor:
            self._clock = DeviceClock()
            self._executor = MeteredExecutor(make(*arguments))
            return self._executor

        return metered

    def launch(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        """StepGraphs.launch, between two marks."""

        def timed(*arguments: Any) -> Any:
            assert self._clock is not None, "the executor owns the graphs"
            if self._executor is None or 2 * len(self._executor.works) == len(self._marks):
                return launch(*arguments)  # of no plan: while nobody waits
            self._began = self._clock.mark()
            tensors = launch(*arguments)
            self._marks += [self._began, self._clock.mark()]
            return tensors

        return timed

    def capture(self, capture: Callable[..., Any]) -> Callable[..., Any]:
        """StepGraphs._capture, which launches nothing, and keeps the device waiting."""

        def apart(*arguments: Any) -> Any:
            captured = capture(*arguments)
            assert self._clock is not None
            self._began = self._clock.mark()
            return captured

        return apart

    def steps(self) -> list[tuple[Span, StepWork]]:
        """Those that have plans."""
        if self._executor is None or self._clock is None:
            return []
        seconds = self._clock.seconds(self._marks)
        spans = map(Span, seconds[::2], seconds[1::2])
        return list(zip(spans, self._executor.works, strict=True))


def work(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """In the fork, where torch may be imported."""
    import torch

    from chairlift.worker import main
    from chairlift.worker.cuda.graphs import StepGraphs
    from chairlift.worker.cuda.platform import CudaPlatform

    meter: Any = Meter()
    platform: Any = CudaPlatform
    graphs: Any = StepGraphs
    platform.executor = meter.executor(platform.executor)
    graphs.launch = meter.launch(graphs.launch)
    graphs._capture = meter.capture(graphs._capture)
    if not torch.cuda.is_available():
        module: Any = main
        module.platform_of = lambda device, settings: CudaPlatform(settings, device)
    try:
        return main.run(settings, pulse, quarantine)
    finally:
        Path(sys.argv[1]).write_bytes(msgspec.json.encode(meter.steps()))


if __name__ == "__main__":
    command._work = work
    raise SystemExit(command.main(sys.argv[2:]))
