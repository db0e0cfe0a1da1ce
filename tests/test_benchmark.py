"""scripts/bench: each mode runs, and what it reports adds up. Its figures mean nothing here."""

from __future__ import annotations

import asyncio
import importlib
import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.bench import LIMIT, ROOT, TINY, bench, event

pytestmark = pytest.mark.checkout

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def _results(output: Path, case: str) -> dict[str, dict[str, Any]]:
    """The one run of each policy."""
    results = json.loads((output / case / "results.json").read_bytes())
    (only,) = results["cases"]
    return {run["policy"]: run for run in only["runs"]}


def _check(figures: dict[str, Any]) -> None:
    """Tokens and rates agree with each other."""
    num_prompt, num_output = figures["num_prompt_tokens"], figures["num_output_tokens"]
    assert figures["num_requests"] == LIMIT
    assert figures["output_tokens_per_s"] * figures["duration_s"] == pytest.approx(num_output)
    num_tokens = figures["total_tokens_per_s"] * figures["duration_s"]
    assert num_tokens == pytest.approx(num_prompt + num_output)
    num_in_steps = figures["tokens_per_step"] * figures["num_steps"]
    assert num_in_steps == pytest.approx(num_prompt + num_output)
    assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p99_ms"] <= 1000 * figures["duration_s"]
    assert 0 < figures["itl_p50_ms"] <= figures["itl_p99_ms"]
    assert 0 <= figures["foreign_cpu_percent"] <= 100
    assert 50 < figures["worker_end_mib"] <= figures["worker_peak_mib"]


def test_offline_compares_both_policies(bench_cache: Path, tmp_path: Path) -> None:
    """Both do the same work, step by step, and a table, JSON and a picture tell of it."""
    done = bench(bench_cache, tmp_path, "offline", *TINY, "--limit", str(LIMIT))
    assert done.returncode == 0, done.stderr
    runs = _results(tmp_path, "offline-tiny-tiny")
    assert runs.keys() == {"continuous", "static"}
    for run in runs.values():
        figures, steps = run["figures"], run["steps"]
        _check(figures)
        assert len(steps["num_tokens"]) == figures["num_steps"]
        assert sum(steps["num_tokens"]) == (
            figures["num_prompt_tokens"] + figures["num_output_tokens"]
        )
        assert max(steps["num_running"]) == 3  # the workload's concurrency
        assert 0 < figures["outside_forward_percent"] < 100
        assert figures["tokens_per_arrival"] == 1
    counts = [(f["num_prompt_tokens"], f["num_output_tokens"]) for f in _figures(runs)]
    assert counts[0] == counts[1]
    folder = tmp_path / "offline-tiny-tiny"
    assert (folder / "offline-tiny-tiny.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "results.md").read_text("utf-8")
    assert table in done.stdout
    assert "`scripts/bench offline --model tiny" in table
    assert "continuous / static" in table


def test_any_setting_of_the_worker_can_be_given(bench_cache: Path, tmp_path: Path) -> None:
    """`--set` reaches the engine: two seats are two running sequences at most."""
    options = ("--policies", "continuous", "--set", "max-num-seqs=2", "--set", "prefix_caching=no")
    done = bench(bench_cache, tmp_path, "offline", *TINY, "--limit", str(LIMIT), *options)
    assert done.returncode == 0, done.stderr
    runs = _results(tmp_path, "offline-tiny-tiny")
    assert max(runs["continuous"]["steps"]["num_running"]) == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("max_num_seq=3", "did you mean max_num_seqs"),
        ("address=ipc:///tmp", "no such setting"),
        ("dtype=float32", "use --dtype"),
        ("policy=static", "use --policies"),
        ("max_num_seqs=none", "valid integer"),
        ("max_num_seqs=64", "at least"),
        ("max_num_seqs", "NAME=VALUE"),
    ],
)
def test_a_setting_that_can_not_be_is_refused(
    given: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name, one that has an option of its own and a bad value, before anything runs."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    options = importlib.import_module("benchmark.options")
    with pytest.raises(Exception, match=complaint):
        options.settings_given([given], {"max_num_batched_tokens": 64})


def _figures(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [run["figures"] for run in runs.values()]


def test_http_measures_real_processes(bench_cache: Path, tmp_path: Path) -> None:
    """A worker and a frontend answer the client, which counts the same tokens as they do."""
    done = bench(bench_cache, tmp_path, "http", *TINY, "--limit", str(LIMIT))
    assert done.returncode == 0, done.stderr
    runs = _results(tmp_path, "http-tiny-tiny")
    assert runs.keys() == {"continuous"}
    figures = runs["continuous"]["figures"]
    _check(figures)
    assert figures["tokens_per_arrival"] >= 1
    assert figures["frontend_end_mib"] > 10


@pytest.mark.parametrize("scenario", ["attack", "crowd", "prefix"])
def test_scenarios_run(bench_cache: Path, tmp_path: Path, scenario: str) -> None:
    """Each tells its ratios and what they must be."""
    done = bench(
        bench_cache, tmp_path, scenario, "--model", "tiny", "--quick", "--num-threads", "1"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / f"{scenario}-tiny" / "results.json").read_bytes())
    (case,) = report["cases"]
    ratios = [(value, must) for label, value, must in case["rows"] if label == "ratio"]
    assert ratios and all(value > 0 and must.startswith("<= ") for value, must in ratios)
    assert "must be" in done.stdout


def test_speculation_is_compared_with_none(bench_cache: Path, tmp_path: Path) -> None:
    """The same answers, at two rates."""
    done = bench(bench_cache, tmp_path, "speculation", "--quick", "--num-threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "speculation" / "results.json").read_bytes())
    (case,) = report["cases"]
    ratios = [value for label, value, _ in case["rows"] if label == "ratio"]
    assert len(ratios) == 8 and min(ratios) > 0


@pytest.mark.parametrize("variant", ["chat", "logprobs", "completions"])
def test_frontend_is_measured_against_a_paced_worker(
    variant: str, bench_cache: Path, tmp_path: Path
) -> None:
    """Every stream comes whole, a token for each step, and the figures agree with each other."""
    options = ("--streams", "3", "--seconds", "0.5", "--step-ms", "10", "--variants", variant)
    done = bench(bench_cache, tmp_path, "frontend", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "frontend-3" / "results.json").read_bytes())
    (only,) = results["cases"]
    (run,) = only["runs"]
    figures = run["figures"]
    assert run["job"]["variant"] == variant
    assert figures["num_streams"] == 3
    assert figures["tokens_per_s"] * figures["duration_s"] == pytest.approx(figures["num_tokens"])
    cpu_s = figures["cpu_us_per_token"] * figures["num_tokens"] / 1e6
    core_share = figures["core_percent"] / 100
    assert core_share * figures["duration_s"] == pytest.approx(cpu_s)
    assert 0 < figures["lag_p50_ms"] <= figures["lag_p99_ms"]
    assert figures["tokens_per_event"] >= 1
    assert "CPU per token" in (tmp_path / "frontend-3" / "results.md").read_text("utf-8")


def _paced(num_lost: int = 0) -> Any:
    """The events of a stream whose tokens are those of steps 4, 5, 6 and so on."""
    client = importlib.import_module("benchmark.http_client")
    for step in (4, 5, 6 + num_lost):
        event = {"choices": [{"text": f" {step:05}"}]}
        yield client.Arrival(float(step), 100, event)


def test_a_lost_token_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paced stream's steps follow each other, and there are as many as were asked for."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    figures = importlib.import_module("benchmark.frontend_figures")
    course = importlib.import_module("benchmark.course").Course(made_s=[0.0] * 9)
    tally = figures.Tally(course, figures.Window(begin_s=0.0, end_s=9.0, cpu_s=1.0))
    tally.take(_paced(), 3)
    with pytest.raises(Exception, match="came as"):
        tally.take(_paced(num_lost=1), 3)
    with pytest.raises(Exception, match="came as"):
        tally.take(_paced(), 4)


def test_requests_that_do_not_fit_are_refused(bench_cache: Path, tmp_path: Path) -> None:
    """The complaint names the option to change, and nothing is written."""
    done = bench(bench_cache, tmp_path, "offline", *TINY, "--max-model-len", "16")
    assert done.returncode == 1
    assert "raise --max-model-len" in done.stderr
    assert not list(tmp_path.iterdir())


def _read(monkeypatch: pytest.MonkeyPatch, *pieces: bytes) -> Any:
    """What the client makes of an answer that arrives in these pieces, one a second."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    client = importlib.import_module("benchmark.http_client")
    clock = iter(range(100))
    monkeypatch.setattr(client.time, "perf_counter", lambda: float(next(clock)))

    async def receive() -> Any:
        raw = client.RawExchange(client.Request([1], 2))
        for piece in pieces:
            raw.data_received(piece)
        raw.connection_lost(None)
        await raw.ended
        return raw.read()

    return asyncio.run(receive())


def test_an_event_counts_when_its_last_byte_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of the answer end where they like; text may look like the start of an event."""
    first, second = event("data: a\n\n"), event("b")
    ending = event("", 2) + b"data: [DONE]\n\n"
    cut = len(second) // 2
    exchange = _read(
        monkeypatch,
        STREAM_HEAD + b"20\r\n" + first[:5],
        first[5:] + b"\r\n20\r\n" + second[:cut],
        second[cut:] + b"\r\n20\r\n" + ending + b"\r\n0\r\n\r\n",
    )
    assert exchange.submitted_s == 0
    assert exchange.arrivals_s == [2, 3]
    assert exchange.num_output_tokens == 2


def test_tokens_that_come_at_once_share_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inter-token latency counts tokens, not events: of one event, or of several in one read."""
    exchange = _read(
        monkeypatch,
        STREAM_HEAD + b"\n" + event("a", token_ids=[1]),
        event("bcd", token_ids=[2, 3, 4]) + event("e", token_ids=[5]),
        event("f", token_ids=[6]) + event("", 6) + b"data: [DONE]\n\n",
    )
    assert exchange.num_arrived == [1, 4, 1]
    assert exchange.pauses_ms == [1000, 1000]
    assert exchange.gaps_ms == [250, 250, 250, 250, 1000]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\nno", "refused"),
        (STREAM_HEAD + b"20\r\n" + event("a"), "broke off"),
        (STREAM_HEAD + b'20\r\ndata: {"error": "ill"}\n\ndata: [DONE]\n\n', "failed"),
        (b"", "refused"),
    ],
)
def test_a_broken_answer_is_no_measurement(
    answer: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal, a stream without its end and an error within one stop the benchmark."""
    with pytest.raises(Exception, match=complaint):
        _read(monkeypatch, answer)


def test_load_rises(bench_cache: Path, tmp_path: Path) -> None:
    """Each policy has a point for each number of requests at a time, and a picture shows them."""
    options = ("--concurrency", "3,1", "--limit", "6")
    done = bench(bench_cache, tmp_path, "load", *TINY, *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "load-tiny-tiny"
    (case,) = json.loads((folder / "results.json").read_bytes())["cases"]
    points = [(point["policy"], point["concurrency"]) for point in case["points"]]
    assert points == [(p, c) for p in ("continuous", "static") for c in (1, 3)]
    assert all(point["figures"]["num_requests"] == 6 for point in case["points"])
    assert (folder / "load-tiny-tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "inter-token latency" in done.stdout


def test_all_measures_what_the_documentation_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/benchmarks.md names each command of `scripts/bench all`, and each can be parsed."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    cli = importlib.import_module("benchmark.cli")
    documented = (ROOT / "docs" / "benchmarks.md").read_text("utf-8").splitlines()
    for line in cli.ALL:
        assert cli.parser().parse_args(shlex.split(line)).measure
        assert f"scripts/bench {line}" in documented


def test_a_measurement_waits_for_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontend is healthy while its worker still loads a model, and would refuse requests."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    processes = importlib.import_module("benchmark.processes")
    monkeypatch.setattr(processes, "POLL_S", 0.001)
    asked = []

    class Frontend(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            is_ready = self.path == "/health" or len(asked) == 3
            self.send_response(200 if is_ready else 503)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Frontend) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            processes.wait_until_healthy(server.server_port, {}, 20.0, "/ready")
        finally:
            server.shutdown()
    assert asked == ["/ready"] * 3
