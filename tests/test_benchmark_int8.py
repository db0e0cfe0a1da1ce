"""scripts/bench int8 runs, and its tables say what they should. Their figures mean little here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import bench
from tests.vnni import needs_vnni

pytestmark = [pytest.mark.checkout, needs_vnni]


def numbers(row: list[str]) -> list[float]:
    return [float(cell.split()[0]) for cell in row]


def test_int8_tells_what_it_gains_and_costs(bench_cache: Path, tmp_path: Path) -> None:
    """It compares speed, text that is foretold, greedy answers, and single layers."""
    options = ("--model", "tiny", "--quick", "--num-threads", "1")
    done = bench(bench_cache, tmp_path, "int8", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "int8-tiny" / "results.json").read_bytes())
    speed, demo_model, layers = report["cases"]
    assert [run["quantize"] for run in speed["runs"]] == ["none", "int8"]
    assert all(run["figures"]["output_tokens_per_s"] > 0 for run in speed["runs"])
    assert "int8 / none" in done.stdout
    entropies, divergences, *_ = (numbers(row[1:]) for row in demo_model["rows"][1:])
    assert entropies[1:] == pytest.approx([entropies[0]] * 3, rel=0.1)
    assert divergences[0] == 0 < divergences[2] < 0.01
    _, bfloat16, int8, *_ = layers["rows"]
    assert numbers(bfloat16[1:])[0] < numbers(int8[1:])[0] < 2
    assert numbers(int8[1:]) == sorted(numbers(int8[1:]))
