"""Which sizes of steps there are, and when each is captured."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from chairlift.worker.cuda import graphs
from chairlift.worker.cuda.device_step import DeviceStep, StepSize, StepSizes, StepTensors
from chairlift.worker.cuda.graphs import StepGraphs


@pytest.mark.parametrize("least_rows", [1, 16])
@pytest.mark.parametrize("has_decodes", [True, False])
def test_the_sizes_of_a_worker(least_rows: int, has_decodes: bool) -> None:
    """Each that a step can have, once; the first two launch all kernels; no more than a quarter of
    a size is padding, but for the least one."""
    sizes = StepSizes(24, 300, least_rows, has_decodes)
    every = sizes.all()
    assert len(every) == len(set(every)) < 70
    assert every[0] == StepSize(least_rows, min(least_rows, 24), not has_decodes)
    assert every[1] == StepSize(320, 24, has_chunks=True)
    assert {size.has_chunks for size in every} == ({True, False} if has_decodes else {True})
    for num_rows in range(1, 301):
        for has_chunks in [True, False][: 1 + (num_rows <= 24)]:
            size = sizes.of(num_rows, has_chunks=has_chunks)
            assert size in every
            assert least_rows <= size.num_rows >= num_rows
            assert size.num_rows == least_rows or size.num_rows < 1.25 * num_rows
            assert size.num_logit_rows == min(size.num_rows, 24)


class Step:
    """Remembers what was launched."""

    def __init__(self) -> None:
        self.launched: list[StepSize] = []

    def launch(self, size: StepSize) -> StepTensors:
        self.launched.append(size)
        return cast(StepTensors, size)


class Graph:
    def __init__(self, size: StepSize, step: Step) -> None:
        self._size, self._step = size, step

    def replay(self) -> None:
        assert self._step.launched.count(self._size) == 1, "only a capture launches it once more"


@pytest.fixture
def step() -> Step:
    return Step()


def graphs_of(step: Step, expected: list[StepSize], monkeypatch: pytest.MonkeyPatch) -> StepGraphs:
    """As on a GPU, with captures that are told to the list of launches by nobody."""
    made = StepGraphs(cast(DeviceStep, step), torch.device("cuda"), expected)

    def capture(size: StepSize) -> Any:
        return graphs._Captured(cast(Any, Graph(size, step)), cast(StepTensors, size))

    monkeypatch.setattr(made, "_capture", capture)
    return made


def test_a_size_is_launched_once_and_replayed_from_then_on(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second launch is the capture's."""
    made, size = graphs_of(step, [], monkeypatch), StepSize(4, 4, has_chunks=False)
    for _ in range(3):
        assert made.launch(size) == size  # type: ignore[comparison-overlap]  # as Step gives it
    assert step.launched == [size]


def test_what_came_by_itself_is_no_longer_expected(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order; one that came once only is."""
    sizes = [StepSize(number, 1, has_chunks=False) for number in range(1, 6)]
    made = graphs_of(step, sizes, monkeypatch)
    made.launch(sizes[0])
    for _ in range(2):
        made.launch(sizes[1])
    assert [made.next_expected(), made.next_expected()] == [sizes[0], sizes[2]]


def test_without_memory_for_a_capture_steps_are_launched_one_by_one(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other is tried; what was captured before is replayed."""
    sizes = [StepSize(number, 1, has_chunks=False) for number in range(1, 4)]
    made, tried = graphs_of(step, sizes, monkeypatch), []
    for _ in range(2):
        made.launch(sizes[0])

    def no_memory(size: StepSize) -> Any:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made, "_capture", no_memory)
    for _ in range(3):
        for size in sizes:
            made.launch(size)
    assert tried == [sizes[1]]
    assert step.launched == [sizes[0], *3 * sizes[1:]]
    assert made.next_expected() is None


def test_nothing_is_expected_where_nothing_can_be_captured(step: Step) -> None:
    """Steps are launched one by one there."""
    size = StepSize(1, 1, has_chunks=False)
    made = StepGraphs(cast(DeviceStep, step), torch.device("cpu"), [size])
    assert made.next_expected() is None
    for _ in range(3):
        made.launch(size)
    assert step.launched == [size] * 3
