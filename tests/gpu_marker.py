"""What the marker `gpu` means: such a test needs a CUDA device, and a run without one says so."""

from __future__ import annotations

from functools import cache

import pytest

REASON = "torch finds no CUDA device"
INTERPRETED = "worker/cuda/"


@cache
def has_cuda() -> bool:
    import torch  # slow, and only where somebody asks

    return torch.cuda.is_available()


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
