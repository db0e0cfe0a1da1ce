"""Real processes as `honcho start` runs them: a worker, an HTTP frontend, the openai client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import zmq

import chairlift
from chairlift.shared.addresses import Endpoints
from tests.integration.processes import chairlift as running
from tests.integration.processes import stop, worker_child
from tests.tcp import free_port

READY_TIMEOUT_S = 60.0
GREEDY = {"ignore_eos": True}


def health(port: int) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except (urllib.error.URLError, ConnectionError):
        return 0, {}


def wait_for_health(port: int, status: int = 200) -> dict[str, object]:
    """Until /health answers with the status; bounded."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        found, body = health(port)
        if found == status:
            return body
        time.sleep(0.05)
    raise AssertionError(f"/health never said {status}")


@pytest.fixture(scope="module")
def port(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[int]:
    """An HTTP frontend in front of the module's worker."""
    number = free_port()
    with running("serve", address=worker_address, port=number):
        wait_for_health(number)
        yield number


def openai_client(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60
    )


def model_of(tiny_model: Path) -> str:
    return tiny_model.name


def test_eight_streams_interleave(port: int, tiny_model: Path) -> None:
    """Eight streams of the openai client, four of which find room at a time, run side by side; each
    is as when it is alone."""

    async def one(client: openai.AsyncOpenAI, number: int, order: list[int]) -> str:
        text = ""
        stream = await client.completions.create(
            model=model_of(tiny_model),
            prompt=f"abc{number}",
            max_tokens=200,
            stream=True,
            seed=number,
            extra_body=GREEDY,
        )
        async for chunk in stream:
            order.append(number)
            text += chunk.choices[0].text
        return text

    async def run() -> None:
        async with openai_client(port) as client:
            order: list[int] = []
            together = await asyncio.gather(*(one(client, i, order) for i in range(8)))
            first_end = min(len(order) - order[::-1].index(number) for number in range(8))
            assert len(set(order[:first_end])) == 4, str(order)
            for number in range(8):
                assert await one(client, number, []) == together[number]

    asyncio.run(run())


def test_chat_streams_and_answers_alike(port: int, tiny_model: Path) -> None:
    """A chat gives the same text streamed and not, with usage when it was asked for."""

    async def run() -> None:
        async with openai_client(port) as client:
            call = {
                "model": model_of(tiny_model),
                "messages": [{"role": "user", "content": "abc"}],
                "max_completion_tokens": 12,
                "temperature": 0,
                "extra_body": GREEDY,
            }
            whole = await client.chat.completions.create(**call)  # type: ignore[call-overload]
            assert whole.usage.completion_tokens == 12
            text, usage = "", None
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                **call, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                usage = chunk.usage or usage
                if chunk.choices:
                    text += chunk.choices[0].delta.content or ""
            assert text == whole.choices[0].message.content
            assert usage is not None
            assert usage.completion_tokens == 12

    asyncio.run(run())


@pytest.mark.parametrize("is_streaming", [True, False])
def test_disconnect_cancels(
    port: int, tiny_model: Path, worker_address: str, is_streaming: bool
) -> None:
    """A client that hangs up, streaming or not, leaves no work behind."""
    body = json.dumps(
        {
            "model": model_of(tiny_model),
            "prompt": "abc",
            "max_tokens": 450,
            "stream": is_streaming,
            "ignore_eos": True,
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )

    async def run() -> None:
        async with chairlift.AsyncClient(worker_address) as watcher:
            await watcher.connect()
            await until(lambda: watcher.stats.num_blocks > 0)  # its first figures
            before = watcher.stats.num_generation_tokens
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head.encode() + body)
                await until(lambda: watcher.stats.num_running > 0)
            await until(lambda: watcher.stats.num_running == 0)
            assert watcher.stats.num_free_blocks == watcher.stats.num_blocks
            assert watcher.stats.num_generation_tokens - before < 450

    asyncio.run(run())


async def until(condition: object, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def test_idle_worker_sleeps(worker: subprocess.Popen[bytes], port: int) -> None:
    """Without work the loop blocks in poll: a few system calls a second, no spinning; its parent
    does as little."""
    pids = [worker.pid, worker_child(worker)]
    time.sleep(0.5)
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(4.0)
    for pid, seconds in zip(pids, before, strict=True):
        assert cpu_seconds(pid) - seconds <= 0.05  # 1 %, and a tick of the clock


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_hostile_bytes_cost_nobody_anything(port: int, worker_address: str) -> None:
    """Garbage on the request socket is counted and dropped; the worker goes on."""
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.linger = 1000
    push.connect(Endpoints.parse(worker_address).requests)
    for size in range(50):
        push.send(os.urandom(size))

    async def run() -> None:
        async with chairlift.AsyncClient(worker_address) as client:
            await client.connect()
            await until(lambda: client.stats.num_malformed_messages >= 50)
            assert (await client.complete("abc", max_tokens=3, ignore_eos=True)).text

    asyncio.run(run())
    push.close()
    context.term()


def test_nobody_can_listen_to_all_streams(port: int, worker_address: str) -> None:
    """A subscription that is no frontend's topic is not accepted."""
    context = zmq.Context()
    spy = context.socket(zmq.SUB)
    spy.linger = 0
    spy.subscribe(b"")
    spy.connect(Endpoints.parse(worker_address).tokens)

    async def run() -> None:
        async with chairlift.AsyncClient(worker_address) as client:
            await client.complete("abc", max_tokens=30, ignore_eos=True)

    asyncio.run(run())
    assert spy.poll(200) == 0
    spy.close()
    context.term()


def test_a_second_worker_is_refused(
    worker: subprocess.Popen[bytes], worker_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """On ipc a second bind would steal the first one's clients, so the second worker exits."""
    log = tmp_path / "log"
    with running("worker", log=log, model=tiny_model, address=worker_address) as second:
        assert second.wait(READY_TIMEOUT_S) == 1
    assert str(worker.pid) in log.read_text()


def test_worker_that_cannot_start_says_why(tmp_path: Path, address: str) -> None:
    """A missing model ends the process with status 1 and one readable line."""
    log = tmp_path / "log"
    with running("worker", log=log, model=tmp_path, address=address) as worker:
        assert worker.wait(READY_TIMEOUT_S) == 1
    assert log.read_text().count("has no tokenizer.json") == 1  # and it was not tried again
    assert "Traceback" not in log.read_text()


def test_terminated_worker_finishes_what_runs(address: str, tiny_model: Path) -> None:
    """SIGTERM: running requests finish, new ones are refused, the exit is clean and in time."""

    async def run(worker: subprocess.Popen[bytes]) -> None:
        async with chairlift.AsyncClient(address, connect_timeout_s=60) as client:
            await client.connect()
            running_one = asyncio.ensure_future(
                client.complete("abc", max_tokens=300, ignore_eos=True)
            )
            await until(lambda: client.stats.num_running > 0)
            worker.send_signal(signal.SIGTERM)
            started = time.monotonic()
            answer = await running_one
            assert len(answer.token_ids) == 300
            assert await asyncio.to_thread(worker.wait, 10) == 0
            assert time.monotonic() - started < 10

    with running("worker", model=tiny_model, address=address, drain_timeout_s=8) as worker:
        asyncio.run(run(worker))


def test_streams_survive_a_killed_worker(address: str, tiny_model: Path) -> None:
    """kill -9 and a new worker: the stream pauses and goes on with the tokens it would have had."""
    settings = {"model": tiny_model, "address": address, "dtype": "float32"}
    prompt, params = "abc", {"max_tokens": 400, "seed": 7, "ignore_eos": True}

    async def run(worker: subprocess.Popen[bytes]) -> None:
        async with chairlift.AsyncClient(address, connect_timeout_s=60) as client:
            expected = await client.complete(prompt, **params)
            received: list[int] = []
            text = ""
            async for delta in client.stream(prompt, **params):
                received += delta.token_ids
                text += delta.text
                if worker.poll() is None and len(received) > 20:
                    stop(worker, signal.SIGKILL)
                    successors.enter_context(running("worker", **settings))
            assert received == expected.token_ids
            assert text == expected.text
            assert worker.poll() is not None, "the worker was not killed in time"

    with ExitStack() as successors, running("worker", **settings) as worker:
        asyncio.run(run(worker))


def test_health_tells_an_absent_worker(address: str, tiny_model: Path) -> None:
    """503 before the worker is there, 200 with it, 503 after it went; the frontend stays."""
    number = free_port()
    with running("serve", address=address, port=number) as frontend:
        wait_for_health(number, 503)
        with running("worker", model=tiny_model, address=address):
            wait_for_health(number, 200)
        wait_for_health(number, 503)
        assert stop(frontend) == 0
