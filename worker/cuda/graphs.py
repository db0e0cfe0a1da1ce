"""Whole steps as CUDA graphs: one launch from Python instead of hundreds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from .device_step import DeviceStep, StepSize, StepTensors

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tensors: StepTensors  # written anew by each replay


class StepGraphs:
    """Owns a graph for each size that came twice; all have one pool of memory, for one runs at a
    time. What they give is good until the next step is launched."""

    def __init__(
        self, step: DeviceStep, device: torch.device, expected: Iterable[StepSize]
    ) -> None:
        """Sizes that are `expected` can be captured before they come."""
        self._step = step
        self._is_gpu = device.type == "cuda"
        self._captured: dict[StepSize, _Captured] = {}
        self._seen: set[StepSize] = set()
        self._pool: Any = None
        self._is_full = False  # the memory
        self._expected = deque(expected)

    def launch(self, size: StepSize) -> StepTensors:
        """The first of a size compiles what it launches, as a capture may not; the second is
        captured, which takes some hundredths of a second and computes nothing, and replayed. When
        there is no memory for one more, what has not been captured is launched as it comes."""
        if size not in self._captured and size in self._seen and self._is_gpu and not self._is_full:
            self._try_to_capture(size)
        if size not in self._captured:
            self._seen.add(size)
            return self._step.launch(size)
        captured = self._captured[size]
        captured.graph.replay()
        return captured.tensors

    def next_expected(self) -> StepSize | None:
        """One that was not captured yet. None on what is no GPU: there it would change nothing."""
        while self._expected and self._is_gpu and not self._is_full:
            size = self._expected.popleft()
            if size not in self._captured:
                return size
        return None

    def _try_to_capture(self, size: StepSize) -> None:
        try:
            self._captured[size] = self._capture(size)
        except torch.OutOfMemoryError:
            log.warning("no memory to capture more steps", num_rows=size.num_rows)
            self._is_full = True

    def _capture(self, size: StepSize) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            tensors = self._step.launch(size)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, tensors)
