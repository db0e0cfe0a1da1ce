"""`chairlift trace` beside a worker and a frontend that serve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.processes import environment_of, serving

pytestmark = pytest.mark.slow

TIMEOUT_S = 60.0
KEY = "sk-of-the-test"


def trace(*arguments: object, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "chairlift", "trace", *map(str, arguments)],
        env=environment_of({"address": address}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said."""
    try:
        _, said = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def names(events: list[dict[str, Any]], kind: str) -> set[str]:
    return {event["args"]["name"] for event in events if event["name"] == kind}


@pytest.mark.usefixtures("worker")
def test_steps_and_requests_are_written(worker_address: str, tmp_path: Path) -> None:
    """Of the worker and of the frontend, behind its key; the file is told and loads."""
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    output = tmp_path / "out.json"
    with serving(worker_address, api_keys=KEY) as url:
        process = trace(
            "--seconds=4", "-o", output, f"--frontend={url}", f"--api-key-file={keys}",
            address=worker_address,
        )  # fmt: skip
        while process.poll() is None:
            answer = httpx2.post(
                f"{url}/v1/completions",
                json={"prompt": "abc", "max_tokens": 20, "ignore_eos": True},
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=TIMEOUT_S,
            )
            assert answer.status_code == 200
        code, said = finished(process)
    assert code == 0, said
    assert str(output) in said and "requests of frontends" in said
    events = json.loads(output.read_text())["traceEvents"]
    assert names(events, "process_name") == {"worker", f"frontend {url}"}
    assert {"steps", "row 1"} <= names(events, "thread_name")
    spans = {event["name"] for event in events if event["ph"] == "X"}
    assert {"forward", "decode", "to the first token"} <= spans
    assert KEY not in output.read_text()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["--frontend=http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--frontend=gibberish"], "gibberish"),
        (["--seconds=0"], "--seconds"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    worker_address: str, tmp_path: Path, arguments: list[str], words: str
) -> None:
    """Not after the time is spent, and in one line."""
    output = ["-o", str(tmp_path / "out.json")] if "-o" not in arguments else []
    code, said = finished(trace("--seconds=50", *output, *arguments, address=worker_address))
    assert code in (1, 2)
    assert words in said and "Traceback" not in said
