"""scripts/bench as the tests call it, and the events that its client reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--model", "tiny", "--workload", "tiny", "--num-threads", "1")
LIMIT = 4  # requests


def bench(cache: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments, "--output", str(output)],
        env=os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def event(text: str, num_tokens: int | None = None, token_ids: list[int] | None = None) -> bytes:
    usage = None if num_tokens is None else {"completion_tokens": num_tokens}
    choices = [{"text": text, "token_ids": token_ids}] if num_tokens is None else []
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"
