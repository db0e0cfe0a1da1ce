"""Prompts, answers, keys and the ids of answers stay between the caller and the worker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.processes import chairlift, stop, worker_child

READY_TIMEOUT_S = 60.0
PROMPT = "canary1f0e in the coal mine"
KEY, OTHER_KEY = "canary-key-77d1", "other-key-77d1"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = {"max_tokens": 150, "ignore_eos": True, "stream": True}


@dataclass
class Caller:
    """Asks with the canaries, and keeps what no log should hold and what was refused."""

    port: int
    secrets: set[str] = field(default_factory=lambda: {PROMPT, KEY, OTHER_KEY})
    refusals: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def ask(self, path: str, body: Any, *, key: str = KEY, kind: str = "application/json") -> str:
        """The whole answer; the ids and texts of answers become secrets."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_TIMEOUT_S)
        try:
            connection.request(
                "GET" if body is None else "POST",
                path,
                body if isinstance(body, bytes | None) else json.dumps(body),
                {"Authorization": f"Bearer {key}", "Content-Type": kind},
            )
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        self.statuses.add(answer.status)
        if answer.status >= 400 or '"error"' in text:
            self.refusals.append(text)
        if answer.status == 200 and body is not None:
            self._learn(text)
        return text

    def hang_up(self, body: dict[str, Any], *, after: int) -> None:
        """Leaves when this much of the answer has come, or has been sent when it is 0."""
        sent = json.dumps(body).encode()
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port), READY_TIMEOUT_S) as connection:
            connection.sendall(head.encode() + (sent if after else sent[:-2]))
            received = b""
            while len(received) < after:
                received += connection.recv(1 << 16)
        if received:
            self._learn(received.decode(errors="replace").partition("\r\n\r\n")[2])

    def _learn(self, text: str) -> None:
        whole = text if text.startswith("{") else ""
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        for line in [whole] if whole else lines:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # cut off
            if "id" in answer:
                self.secrets |= {answer["id"], answer["id"].partition("-")[2]}
            for choice in answer.get("choices", ()):
                said = choice.get("text") or ""
                self.secrets |= {said} if len(said) > 12 else set()


@dataclass(frozen=True)
class Place:
    """A server with everything that it writes down."""

    caller: Caller
    worker: subprocess.Popen[bytes]
    server: subprocess.Popen[bytes]
    logs: tuple[Path, ...]


@pytest.fixture(scope="module")
def place(
    tiny_model: Path, worker_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Worker and server at debug, which tells all that is ever told."""
    folder = tmp_path_factory.mktemp("place")
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n{OTHER_KEY}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"address": worker_address, "log_level": "debug"}
    logs = folder / "worker.log", folder / "server.log"
    with (
        chairlift("worker", log=logs[0], model=tiny_model, max_num_seqs=2, **common) as worker,
        chairlift(
            "serve",
            log=logs[1],
            port=port,
            api_key_file=keys,
            max_requests_per_key=3,
            body_timeout_s=0.5,
            max_body_bytes=10_000,
            **common,
        ) as server,
    ):
        wait_until_ready(port)
        yield Place(Caller(port), worker, server, logs)


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise AssertionError("nobody is ready")


def provoke(caller: Caller, worker: subprocess.Popen[bytes]) -> None:
    """Every success and every failure that a caller can bring about."""
    prompt = {"prompt": PROMPT, "max_tokens": 24, "ignore_eos": True}
    messages = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 9}
    for stream in (False, True):
        caller.ask(COMPLETIONS, {**prompt, "stream": stream, "n": 2, "stop": [PROMPT + "!"]})
        caller.ask(CHAT, {**messages, "stream": stream})
    refused: list[Any] = [
        json.dumps(prompt).encode()[:-1],
        b'"' + PROMPT.encode() + b'"',
        {"prompt": {"a": PROMPT}},
        {"prompt": [1, PROMPT]},
        {**prompt, "temperature": PROMPT},
        {**prompt, "max_tokens": 100_000},
        {**prompt, "stop": [PROMPT] * 99},
        {**prompt, "logit_bias": {PROMPT: 1}},
        {**prompt, "suffix": PROMPT},
        {**prompt, "model": "another"},
        {**prompt, "cache_salt": PROMPT * 99},
        {"prompt": PROMPT * 100, "max_tokens": 5},
        {"prompt": PROMPT * 1000},
        {"prompt": []},
        {"prompt": "a", "stop_token_ids": [PROMPT]},
    ]
    for body in refused:
        caller.ask(COMPLETIONS, body)
    for message in (
        {"role": PROMPT, "content": PROMPT},
        {"role": "user", "content": {"text": PROMPT}},
        {"role": "user", "content": [{"type": "image_url", "image_url": PROMPT}]},
        {"role": "user", "content": PROMPT, "tool_calls": [PROMPT]},
        {"role": "user", "content": PROMPT * 100},
    ):
        caller.ask(CHAT, {"messages": [message]})
    caller.ask(COMPLETIONS, prompt, key=KEY + "x")
    caller.ask(COMPLETIONS, prompt, kind="text/plain")
    caller.ask("/v1/" + PROMPT.replace(" ", "-"), prompt)
    caller.hang_up(prompt, after=0)  # and the body comes too slowly
    caller.hang_up({"prompt": PROMPT, **LONG}, after=500)
    overload(caller)
    kill(caller, worker)
    wait_until_ready(caller.port)
    caller.ask(COMPLETIONS, prompt, key=OTHER_KEY)


def overload(caller: Caller) -> None:
    askers = [
        threading.Thread(target=caller.ask, args=(COMPLETIONS, {"prompt": PROMPT, **LONG}))
        for _ in range(8)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()


def kill(caller: Caller, worker: subprocess.Popen[bytes]) -> None:
    """In the midst of an answer."""
    child = worker_child(worker)
    asker = threading.Thread(target=caller.ask, args=(COMPLETIONS, {"prompt": PROMPT, **LONG}))
    asker.start()
    time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    asker.join()


def test_canaries(place: Place) -> None:
    """After all of it, not one is in a log, a figure, a refusal or in what `ps` shows."""
    caller = place.caller
    provoke(caller, place.worker)
    assert {200, 400, 401, 404, 413, 415, 429} <= caller.statuses
    assert len(caller.secrets) > 20 and len(caller.refusals) > 25
    figures = caller.ask("/metrics", None)
    assert "chairlift:http_requests_total" in figures
    for secret in (PROMPT, KEY, OTHER_KEY):
        assert not [refusal for refusal in caller.refusals if secret in refusal]
    for process in (place.worker.pid, worker_child(place.worker), place.server.pid):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace")
            assert not leaks(shown, caller.secrets)
    assert stop(place.server) == 0
    stop(place.worker)
    for log in place.logs:
        text = log.read_text()
        assert len(text.splitlines()) > 3
        assert not leaks(text, caller.secrets)
        assert "Traceback" not in text
    assert not leaks(figures, caller.secrets)


def leaks(text: str, secrets: set[str]) -> set[str]:
    """As they are, or as JSON or Python would write them."""
    return {s for s in secrets if s in text or json.dumps(s)[1:-1] in text or repr(s)[1:-1] in text}
