"""What a worker's process begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from chairlift.worker.process import TUNING, quota_cores, tune


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "garbage"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_the_limit_is_in_whole_cores(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    """Both kinds of control groups; one core at least, and None where there is no limit."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert quota_cores(tmp_path) == expected


def test_what_the_user_has_set_stays() -> None:
    """And only what was missing is a reason to begin again."""
    environment = {"GOMP_SPINCOUNT": "7", "PATH": "/bin"}
    assert tune(environment)
    assert environment == {**TUNING, "GOMP_SPINCOUNT": "7", "PATH": "/bin"}
    assert not tune(environment)
