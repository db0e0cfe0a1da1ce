"""scripts/gpu as the tests call it: in a process of its own that sees no device, and where Triton
compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HARNESS = "tests.worker.cuda.harness_kernels"


def gpu_script(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m gpu.MODULE`; whatever its exit status."""
    here = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(ROOT / "scripts"), str(ROOT), here)))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", f"gpu.{module}", *arguments],
        env=environment | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def last_table(text: str) -> list[list[str]]:
    """Without its rule."""
    lines = text.rstrip().rpartition("\n\n")[2].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "--" not in line
    ]
