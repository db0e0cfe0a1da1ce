"""`chairlift tap` beside those whose answers it reads."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import chairlift as package
from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.logs import short_hash
from chairlift.shared.sampling_params import SamplingParams
from tests.integration.conftest import short_address
from tests.integration.processes import chairlift, environment_of, serving
from tests.integration.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.slow

TIMEOUT_S = 60.0
PROMPT = [40, 41, 42]
LONG = SamplingParams(max_tokens=8000, temperature=0.0, ignore_eos=True)
WHOLE = SamplingParams(max_tokens=500, temperature=0.0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
TAP = ("-m", "chairlift", "tap")

Scenario = Callable[[package.AsyncClient], Awaitable[None]]


@pytest.fixture(scope="module")
def address(long_model: Path) -> Iterator[str]:
    with (
        short_address() as address,
        chairlift("worker", model=long_model, address=address, dtype="float32"),
    ):
        yield address


def play(address: str, scenario: Scenario) -> None:
    """With a client of someone else."""

    async def run() -> None:
        async with (
            asyncio.timeout(TIMEOUT_S),
            package.AsyncClient(address, connect_timeout_s=TIMEOUT_S) as client,
        ):
            await client.connect()
            await scenario(client)

    asyncio.run(run())


async def tap(address: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *TAP, *arguments,
        env=environment_of({"address": address}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )  # fmt: skip


async def begun(process: asyncio.subprocess.Process) -> str:
    """Some of the text, while the rest is still being made."""
    assert process.stdout is not None
    return (await process.stdout.read(8)).decode()


async def finished(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Its exit code and what it wrote."""
    output, said = await process.communicate()
    return process.returncode, output.decode(), said.decode()


async def text_of(stream: package.TokenStream) -> str:
    return "".join([delta.text async for delta in stream])


async def check_it_goes_on(stream: package.TokenStream) -> None:
    """It makes tokens that were not there yet."""
    stream.take()
    for _ in range(20):
        assert (await anext(stream)).finish is None
    stream.cancel()


def test_what_is_read_along_is_the_whole_answer(address: str) -> None:
    """From the first token on, also when it joins late; how it ended and fared is told apart."""

    async def scenario(client: package.AsyncClient) -> None:
        stream = client.generate(PROMPT, WHOLE, RequestOptions(is_resumable=True))
        process = await tap(address, stream.request_id.hex())
        text = await text_of(stream)
        code, output, said = await finished(process)
        assert (code, output) == (0, text + "\n")
        (line,) = said.splitlines()
        assert line.startswith(f"{short_hash(stream.request_id)} ended with length: queued ")
        assert "500 tokens in " in line and "3 prompt tokens" in line
        assert stream.request_id.hex() not in said

    play(address, scenario)


def test_leaving_costs_the_owner_nothing(address: str) -> None:
    """Ctrl-C, or a pipe that nobody reads, ends the tap alone."""

    async def scenario(client: package.AsyncClient) -> None:
        stream = client.generate(PROMPT, LONG)
        await anext(stream)
        interrupted, piped = [await tap(address, stream.request_id.hex()) for _ in range(2)]
        assert await begun(interrupted) and await begun(piped)
        interrupted.send_signal(signal.SIGINT)
        assert piped.stdout is not None
        piped.stdout._transport.close()  # type: ignore[attr-defined]  # nothing public closes it
        assert (await finished(interrupted))[::2] == (130, "")
        assert (await finished(piped))[::2] == (1, "")
        await check_it_goes_on(stream)

    play(address, scenario)


def test_an_owner_who_cancels_ends_it(address: str) -> None:
    """What came is there, and one line says why there is no more; the exit code is 1."""

    async def scenario(client: package.AsyncClient) -> None:
        stream = client.generate(PROMPT, LONG)
        await anext(stream)
        process = await tap(address, stream.request_id.hex())
        start = await begun(process)
        stream.cancel()
        code, _, said = await finished(process)
        assert code == 1 and start
        assert said == "chairlift tap: cancelled by the client\n"

    play(address, scenario)


def test_what_is_kept_can_be_read_and_nothing_else(address: str) -> None:
    """An answer that has ended is read whole while the worker keeps it, its id told on standard
    input; one that nobody asked for is not found, in one line."""

    async def scenario(client: package.AsyncClient) -> None:
        stream = client.generate(PROMPT, SHORT, RequestOptions(is_resumable=True))
        text = await text_of(stream)
        process = await tap(address, "-")
        output, said = await process.communicate(f"cmpl-{stream.request_id.hex()}\n".encode())
        assert (process.returncode, output.decode()) == (0, text + "\n")
        assert b"20 tokens" in said
        code, nothing, said_of_it = await finished(await tap(address, secrets.token_hex(16)))
        assert (code, nothing.strip()) == (1, "")
        assert said_of_it.count("\n") == 1 and "no such request runs" in said_of_it

    play(address, scenario)


def test_the_choices_of_an_http_answer(address: str) -> None:
    """Each by its number, under the id that the answer shows."""
    body = {"prompt": "abc", "max_tokens": 300, "ignore_eos": True, "n": 2}
    body |= {"stream": True, "resumable": True}
    texts, taps = ["", ""], list[subprocess.Popen[bytes]]()
    with (
        serving(address) as url,
        httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=TIMEOUT_S) as answer,
    ):
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            taps = taps or [tapped(address, event["id"], "--choice", str(i)) for i in (0, 1)]
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts[0] != texts[1]
    for process, text in zip(taps, texts, strict=True):
        assert process.communicate(timeout=TIMEOUT_S)[0].decode() == text + "\n"


def tapped(address: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *TAP, *arguments],
        env=environment_of({"address": address}),
        stdout=subprocess.PIPE,
        cwd="/",
    )


def test_in_a_terminal(address: str) -> None:
    """The text comes as it is made, and Ctrl-C leaves."""

    async def scenario(client: package.AsyncClient) -> None:
        stream = client.generate(PROMPT, LONG)
        await anext(stream)
        with Terminal(*TAP, stream.request_id.hex(), address=address) as terminal:
            await asyncio.to_thread(terminal.until, r"\S{3}")
            assert await asyncio.to_thread(terminal.exit_code_after, CTRL_C) == 130
        await check_it_goes_on(stream)

    play(address, scenario)


def test_what_is_no_id_is_said_at_once() -> None:
    """A hash as logs have it, too: it opens nothing."""
    done = subprocess.run(
        [sys.executable, *TAP, "0a1b2c3d"],
        capture_output=True, text=True, cwd="/", timeout=TIMEOUT_S, env=environment_of({}),
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no id of an answer" in done.stderr and done.stderr.count("\n") == 1
