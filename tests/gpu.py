"""Which tests need a CUDA device, and where the workers run that tests start.

The marker `gpu` is for the first: a run without a device says how many it skipped. The second are
on the CPU, unless CHAIRLIFT_TEST_DEVICE=cuda says otherwise.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

# Taken away, since our own programs refuse variables that they don't know.
DEVICE = os.environ.pop("CHAIRLIFT_TEST_DEVICE", "cpu")
for_cpus = pytest.mark.skipif(DEVICE == "cuda", reason="it is about what only a CPU has")
REASON = "torch finds no CUDA device"
INTERPRETED = "worker/cuda/"


@cache
def has_cuda() -> bool:
    import torch  # slow, and only where somebody asks

    return torch.cuda.is_available()


def pytest_configure() -> None:
    """Raises UsageError for a device that no worker could have."""
    if DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"CHAIRLIFT_TEST_DEVICE is {DEVICE}: give cpu or cuda")
    if DEVICE == "cuda" and not has_cuda():
        raise pytest.UsageError(f"CHAIRLIFT_TEST_DEVICE is cuda, and {REASON}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips those that nothing here can run."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped for want of a device, and how many ran their code without."""
    reports = {
        outcome: terminalreporter.getreports(outcome) for outcome in ("skipped", "passed", "failed")
    }
    num_skipped = sum("gpu" in report.keywords for report in reports["skipped"])
    if num_skipped and not has_cuda():
        ran = reports["passed"] + reports["failed"]
        num_interpreted = sum(INTERPRETED in report.nodeid for report in ran)
        terminalreporter.write_line(
            f"gpu: tests skipped, for {REASON}: {num_skipped}; of {INTERPRETED} that ran without "
            f"one, most in Triton's interpreter: {num_interpreted}"
        )
