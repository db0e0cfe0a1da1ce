"""Another release of Triton than the environment's, for a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence


def run_module(module: str, arguments: Sequence[str], release: str) -> int:
    """`python -m MODULE` with this release of Triton, which pip installs into a folder that is gone
    afterwards; its exit status. Raises SystemExit with what pip says, where that fails."""
    with tempfile.TemporaryDirectory(prefix="triton-") as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        done = subprocess.run(
            [*pip, f"triton=={release}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        ).returncode
