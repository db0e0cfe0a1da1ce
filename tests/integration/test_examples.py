"""docs/examples: each runs as it stands, against a real worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.integration.hosts import as_process, environment

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.checkout, pytest.mark.slow]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MAX_LINES = 40
UVICORN = ("uvicorn", "--port", "PORT")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:PORT", "--no-control-socket")
PREFORK = (*GUNICORN, "--preload", "--workers", "2", "--threads", "8")
SERVERS = {
    "fastapi": ((*UVICORN, "fastapi_app:app"), "/story"),
    "flask": ((*PREFORK, "flask_app:app"), "/story"),
    "django-async": ((*UVICORN, "django_app:application"), "/async-story"),
    "django-sync": ((*PREFORK, "django_app:wsgi"), "/story"),
    "aiohttp": (
        ("aiohttp.web", "-H", "127.0.0.1", "-P", "PORT", "aiohttp_app:make_app"),
        "/story",
    ),
}


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("name", SERVERS)
def test_servers_stream(worker_address: str, tmp_path: Path, name: str) -> None:
    """Each framework's example streams events, the last of which says why it ends, to several
    callers, and stops without a complaint."""
    command, page = SERVERS[name]
    log = tmp_path / "log"
    with as_process(command, worker_address, EXAMPLES, log) as url:
        num_events = []
        for about in ("fox", "owl", "bear"):
            with httpx2.stream("GET", f"{url}{page}", params={"about": about}) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                events = events_of(answer)
            assert events[-1]["finish_reason"] in ("stop", "length")
            assert not any("finish_reason" in event for event in events[:-1])
            num_events.append(len(events))
        assert max(num_events) > 2, "one of them has more than an end to tell"
    assert not re.search("Traceback|Exception|Warning:", log.read_text()), log.read_text()


@pytest.mark.parametrize("name", ["fastapi", "flask"])
def test_errors_are_the_applications_own(worker_address: str, tmp_path: Path, name: str) -> None:
    """What can't be answered becomes what the application makes of a ChairliftError."""
    command, _ = SERVERS[name]
    with as_process(command, worker_address, EXAMPLES, tmp_path / "log") as url:
        assert httpx2.get(f"{url}/opening", params={"about": "fox"}).json()["opening"]
        refused = httpx2.get(f"{url}/opening", params={"about": "x" * 3000})
        assert refused.status_code == 503
        assert "fit" in refused.json()["error"]


@pytest.mark.parametrize(
    ("module", "key"), [("mounted:app", "zoe-secret"), ("django_app:application", "any")]
)
def test_mounts(worker_address: str, tmp_path: Path, module: str, key: str) -> None:
    """The official client talks to the mounts of the examples; the one that asks for a user tells
    strangers so."""
    command = (*UVICORN, module)
    with (
        as_process(command, worker_address, EXAMPLES, tmp_path / "log") as url,
        openai.OpenAI(base_url=f"{url}/llm/v1", api_key=key, max_retries=0) as client,
    ):
        (model,) = client.models.list().data
        chunks = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": "abc"}],
            max_tokens=5,
            stream=True,
        )
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1]
        status = httpx2.get(f"{url}/llm/v1/models").status_code
        assert status == (401 if module.startswith("mounted") else 200)


@pytest.mark.parametrize(
    "command",
    [("script.py",), ("-m", "IPython", "--no-banner", "--colors=NoColor", "notebook.ipy")],
    ids=["script", "notebook"],
)
def test_scripts(worker_address: str, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The script and the notebook's cells run through and tell a story."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**environment(worker_address), "IPYTHONDIR": str(tmp_path)},
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 2


def test_examples_are_short() -> None:
    """Each has less than 40 lines, and all of them are tried above."""
    names = {path.stem: path for path in EXAMPLES.iterdir() if path.is_file()}
    for path in names.values():
        assert len(path.read_text("utf-8").splitlines()) < MAX_LINES, path
    tried = {"fastapi_app", "flask_app", "django_app", "aiohttp_app", "mounted", "script"}
    assert set(names) == tried | {"notebook"}
