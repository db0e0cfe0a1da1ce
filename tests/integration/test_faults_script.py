"""scripts/chaos: it runs what it is told to and writes it down; its status says what held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.fleet import ROOT

pytestmark = [pytest.mark.checkout, pytest.mark.slow]


def chaos(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faults", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_scenario_is_run_and_written_down(tmp_path: Path) -> None:
    """The quickest one: a row in the table, and the same as JSON."""
    out = tmp_path / "out.json"
    run = chaos("other-version", "--out", out)
    assert run.returncode == 0, run.stderr
    assert "| other-version | one message of version 99 |" in run.stdout
    report = json.loads(out.read_bytes())
    assert report["outcomes"]["other-version"]["failures"] == []
    assert report["machine"]["num_cores"] >= 1


def test_what_there_is_is_listed() -> None:
    """Every scenario with what must hold; one that does not exist is refused."""
    listed = chaos("--list").stdout.splitlines()
    assert len(listed) >= 18
    assert all(len(line.split()) > 3 for line in listed)
    assert chaos("no-such").returncode == 2
