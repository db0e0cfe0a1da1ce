"""A run without a CUDA device skips what needs one and says so, and starts no worker there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDY = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_needy(number):
    assert False, "there is no device"
"""
CONTENT = "def test_content():\n    pass\n"


def run_pytest(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """One that finds no device, whether there is one or not."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu", "-c", os.devnull]
    hidden = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, f"--rootdir={folder}", "-W", "ignore", str(folder)],
        env=os.environ | hidden | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def last_lines(folder: Path) -> list[str]:
    done = run_pytest(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-2:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tests that need a device, and two that are of the GPU's code or not, and need none."""
    (tmp_path / "worker" / "cuda").mkdir(parents=True)
    (tmp_path / "test_needy.py").write_text(NEEDY)
    (tmp_path / "test_other.py").write_text(CONTENT)
    (tmp_path / "worker" / "cuda" / "test_interpreted.py").write_text(CONTENT)
    return tmp_path


def test_what_needs_a_device_is_skipped_and_counted(folder: Path) -> None:
    """With what ran of the GPU's code all the same."""
    told, counts = last_lines(folder)
    assert told == (
        "gpu: tests skipped, for torch finds no CUDA device: 2; of worker/cuda/ that ran without "
        "one, most in Triton's interpreter: 1"
    )
    assert counts.startswith("2 passed, 2 skipped")


def test_nothing_is_said_where_nothing_was_skipped(folder: Path) -> None:
    """Without the two that need a device."""
    (folder / "test_needy.py").unlink()
    assert not any(line.startswith("gpu:") for line in last_lines(folder))


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("cuda", "CHAIRLIFT_TEST_DEVICE is cuda, and torch finds no CUDA device"),
        ("tpu", "CHAIRLIFT_TEST_DEVICE is tpu: give cpu or cuda"),
    ],
)
def test_workers_are_not_asked_for_a_device_that_is_not_there(
    folder: Path, device: str, why: str
) -> None:
    """The run ends before its first test."""
    done = run_pytest(folder, CHAIRLIFT_TEST_DEVICE=device)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert why in done.stderr and "passed" not in done.stdout
