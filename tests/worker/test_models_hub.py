"""Downloads, against a small hub of our own on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from chairlift.worker.models.hub import resolve_model

MODEL = "someone/small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 400,
    "pytorch_model.bin": b"not wanted",
    "README.md": b"not wanted",
}
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


class FakeHub(BaseHTTPRequestHandler):
    """Serves MODEL at `main` and COMMIT; other models are gated, private or missing by name."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        match parts:
            case ["api", "models", "someone", "gated", *_]:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" != MODEL:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            case ["api", "models", _, _, ("revision" | "tree"), revision, *_] if revision not in (
                "main",
                COMMIT,
            ):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            case ["api", "models", _, _, "tree", *_]:
                self._send_json([_listing(path) for path in FILES])
            case ["api", "models", *_]:
                siblings = [{"rfilename": path} for path in FILES]
                self._send_json({"id": MODEL, "sha": COMMIT, "siblings": siblings})
            case ["someone", "small", "resolve", _, path] if path in FILES:
                headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT}
                self._send(200, FILES[path], headers)
            case _:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _digest(path: str) -> str:
    return hashlib.sha1(FILES[path]).hexdigest()


def _listing(path: str) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(FILES[path]), "oid": _digest(path)}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


PROGRAM = """
import json, sys
from chairlift.shared.errors import ModelError
from chairlift.worker.models.hub import resolve_model
for name, revision, offline in json.loads(sys.argv[1]):
    try:
        print("found", resolve_model(name, revision, offline))
    except ModelError as error:
        print("refused", str(error).replace("\\n", " "))
"""


def resolve_all(calls: list[tuple[str, str | None, bool]], endpoint: str, home: Path) -> list[str]:
    """Each call's outcome, in a process of its own: the library reads its settings at import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_a_folder_is_itself(tmp_path: Path) -> None:
    """An existing folder needs no hub."""
    assert resolve_model(str(tmp_path), offline=True) == tmp_path


def test_a_model_is_downloaded_once_and_then_found_offline(hub: str, tmp_path: Path) -> None:
    """Only the wanted files come; branch and commit lead to the same snapshot."""
    calls: list[tuple[str, str | None, bool]] = [
        (MODEL, None, True),
        (MODEL, None, False),
        (MODEL, None, True),
        (MODEL, COMMIT, True),
    ]
    before, *found = resolve_all(calls, hub, tmp_path)
    assert before.startswith("refused")
    assert "downloads are off" in before
    assert len(set(found)) == 1
    folder = Path(found[0].removeprefix("found "))
    assert {file.name for file in folder.iterdir()} == WANTED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_refusals_say_what_to_change(hub: str, tmp_path: Path) -> None:
    """Unknown, gated, no such revision, no name at all."""
    calls: list[tuple[str, str | None, bool]] = [
        ("someone/nothing", None, False),
        ("someone/gated", None, False),
        (MODEL, "no-such-branch", False),
        ("./no/such/folder", None, False),
    ]
    unknown, gated, revision, folder = resolve_all(calls, hub, tmp_path)
    assert "no model someone/nothing" in unknown
    assert "HF_TOKEN" in unknown
    assert "accept its licence" in gated
    assert "no revision no-such-branch" in revision
    assert "neither an existing folder nor a model's name" in folder


def test_a_typo_is_told_from_a_missing_model(hub: str, tmp_path: Path) -> None:
    """A name without an owner is probably no name on the hub: all that could be meant is named."""
    calls: list[tuple[str, str | None, bool]] = [("demo2", None, False), ("demo2", None, True)]
    for outcome in resolve_all(calls, hub, tmp_path):
        expected = "no model demo2: --model takes demo, an existing folder, or owner/model"
        assert expected in outcome


def test_a_hub_that_does_not_answer_is_told_from_a_missing_model(tmp_path: Path) -> None:
    """A refused connection speaks of the network."""
    (outcome,) = resolve_all([(MODEL, None, False)], "http://127.0.0.1:9", tmp_path)
    assert outcome.startswith("refused")
    assert "can't be reached" in outcome
