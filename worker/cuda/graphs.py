"""Whole steps as CUDA graphs: one launch from Python instead of hundreds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .device_step import DeviceStep, StepSize, StepTensors


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tensors: StepTensors  # written anew by each replay


class StepGraphs:
    """Owns a graph for each size that has been captured; all have one pool of memory, for one runs
    at a time. What they give is good until the next step is launched."""

    def __init__(self, step: DeviceStep, device: torch.device) -> None:
        self._step = step
        self._is_gpu = device.type == "cuda"
        self._captured: dict[StepSize, _Captured] = {}
        self._pool: Any = None

    def launch(self, size: StepSize) -> StepTensors:
        """By its graph if there is one."""
        captured = self._captured.get(size)
        if captured is None:
            return self._step.launch(size)
        captured.graph.replay()
        return captured.tensors

    def capture(self, size: StepSize) -> None:
        """Runs the step once, which compiles what it launches, and captures it. What the host sent
        last must be a step of no sequences."""
        if not self._is_gpu or size in self._captured:
            return
        self._step.launch(size)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            tensors = self._step.launch(size)
        self._pool = self._pool or graph.pool()
        self._captured[size] = _Captured(graph, tensors)
