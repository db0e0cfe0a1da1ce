"""What a profile of steps says, by kernels that were made up."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.worker.cuda.gpu_scripts import ROOT

pytestmark = pytest.mark.checkout


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu.profile")


def steps(profile: Any) -> list[Any]:
    """Two of 10 µs: a copy, and two kernels of a graph that overlap before a third; 5 between."""
    kernels = []
    for launch, start in ((1, 100.0), (3, 115.0)):
        kernels += [
            profile.Kernel("copy", launch, start, start + 1),
            profile.Kernel("gemm", launch + 1, start + 2, start + 6),
            profile.Kernel("norm", launch + 1, start + 3, start + 5),
            profile.Kernel("gemm", launch + 1, start + 7, start + 10),
        ]
    return kernels


def test_kernels_are_added_up_by_name_and_the_longest_comes_first(profile: Any) -> None:
    """By step, with the share of the time from the first start to the last end."""
    copy, gemm, norm = (
        ["copy", "1.0", "1.0", "8.0%"],
        ["gemm", "2.0", "7.0", "56.0%"],
        ["norm", "1.0", "2.0", "16.0%"],
    )
    assert profile.rows_of(steps(profile), 2)[:4] == [
        gemm,
        norm,
        copy,
        ["all kernels", "4.0", "10.0", "80.0%"],
    ]
    assert profile.step_ms(steps(profile), 2) == 0.0125


def test_the_device_is_idle_where_no_kernel_runs(profile: Any) -> None:
    """Kernels that overlap count once, and gaps within a graph are told from those between
    launches."""
    assert profile.rows_of(steps(profile), 2)[4:] == [
        ["device idle between kernels", "2.5", "4.5", "36.0%"],
        ["of that, within a graph", "1.0", "1.0", "8.0%"],
        ["of that, between launches", "1.5", "3.5", "28.0%"],
    ]


def test_a_kernel_within_another_ends_no_gap(profile: Any) -> None:
    """The next gap begins where the longer one ends, in whatever order they are noted."""
    kernels = [
        profile.Kernel("last", 1, 12.0, 13.0),
        profile.Kernel("inner", 2, 1.0, 2.0),
        profile.Kernel("outer", 1, 0.0, 10.0),
    ]
    assert list(profile.gaps(kernels)) == [profile.Gap(2.0, True)]


def test_kernels_beyond_the_longest_are_one_row(profile: Any) -> None:
    """So that all rows of kernels add up to the row of all."""
    kernels = [profile.Kernel(f"k{i}", i, 10.0 * i, 10.0 * i + 9 - i / 10) for i in range(23)]
    rows = profile.rows_of(kernels, 1)
    assert [row[0] for row in rows[:20]] == [f"k{i}" for i in range(20)]
    assert rows[20][:2] == ["3 others", "3.0"]
    assert rows[21][:2] == ["all kernels", "23.0"]


def test_long_names_are_cut(profile: Any) -> None:
    """And have nothing that would end a cell."""
    assert profile.short("void fill<a | b>(int)") == "fill<a / b>(int)"
    assert profile.short("x" * 71) == "x" * 69 + "…"
