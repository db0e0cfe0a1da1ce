"""Several readers of one request, over real sockets."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import chairlift
from chairlift.frontend.request_options import RequestOptions
from chairlift.frontend.results import Delta
from chairlift.shared.errors import (
    InvalidRequestError,
    RequestIdConflictError,
    StreamNotFoundError,
)
from chairlift.shared.sampling_params import SamplingParams

PROMPT = [40, 41, 42]
PARAMS = SamplingParams(max_tokens=200, temperature=0.8, seed=11, ignore_eos=True)

Scenario = Callable[[chairlift.AsyncClient, chairlift.AsyncClient], Awaitable[None]]


def play(address: str, scenario: Scenario) -> None:
    """With two clients of the worker, as two frontends are."""

    async def run() -> None:
        async with (
            asyncio.timeout(60),
            chairlift.AsyncClient(address, connect_timeout_s=30) as first,
            chairlift.AsyncClient(address, connect_timeout_s=30) as second,
        ):
            await first.connect()
            await second.connect()
            await scenario(first, second)

    asyncio.run(run())


async def some(stream: AsyncIterator[Delta], num_tokens: int) -> list[int]:
    """At least so many tokens of it."""
    received: list[int] = []
    while len(received) < num_tokens:
        received += (await anext(stream)).token_ids
    return received


async def rest(stream: AsyncIterator[Delta]) -> tuple[list[int], str]:
    """Its other tokens, and why it ended."""
    received, end = [], ""
    async for delta in stream:
        received += delta.token_ids
        if delta.finish:
            end = delta.finish.code or delta.finish.reason
    return received, end


def resumable(request_id: bytes | None = None) -> RequestOptions:
    return RequestOptions(request_id, context=b"context", is_resumable=True)


async def whole(client: chairlift.AsyncClient) -> list[int]:
    return (await rest(client.generate(PROMPT, PARAMS)))[0]


def test_taking_over(worker: subprocess.Popen[bytes], worker_address: str) -> None:
    """Another client gets everything from the first token on; the former one is told."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        stream = first.generate(PROMPT, PARAMS, resumable())
        await some(stream, 5)
        taken = await second.attach(stream.request_id)
        assert taken.context == b"context"
        assert await rest(taken) == (expected, "length")
        assert (await rest(stream))[1] == "taken_over"
        assert first.num_live == second.num_live == 0

    play(worker_address, scenario)


def test_watching(worker: subprocess.Popen[bytes], worker_address: str) -> None:
    """A reader that only watches, at another client or the same, changes nothing by leaving."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        stream = first.generate(PROMPT, PARAMS, resumable())
        held = await some(stream, 5)
        for client in (first, second):
            watcher = await client.attach(stream.request_id, takes_over=False)
            seen = await some(watcher, 3)
            assert seen == expected[: len(seen)]
            watcher.cancel()
        stays = await first.attach(stream.request_id, takes_over=False)
        assert await rest(stays) == (expected, "length")
        tokens, end = await rest(stream)
        assert (held + tokens, end) == (expected, "length")

    play(worker_address, scenario)


def test_the_same_id_is_the_same_request(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """Asked again under its id, here or elsewhere, a request is joined and not run twice."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        options = resumable(secrets.token_bytes(16))
        before = first.stats.num_generation_tokens
        streams = [client.generate(PROMPT, PARAMS, options) for client in (first, first, second)]
        assert [await rest(stream) for stream in streams] == [(expected, "length")] * 3
        late = second.generate(PROMPT, PARAMS, options)  # it is kept
        assert await rest(late) == (expected, "length")
        await asyncio.sleep(0.3)  # a heartbeat with newer figures
        assert first.stats.num_generation_tokens - before == len(expected)

    play(worker_address, scenario)


def test_another_request_under_the_same_id(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """It is refused, at the same client at once and elsewhere by the worker."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        options = resumable(secrets.token_bytes(16))
        async with first.generate(PROMPT, PARAMS, options) as stream:
            await some(stream, 1)  # so that the worker knows it before it hears of the other
            with pytest.raises(RequestIdConflictError):
                first.generate([1, 2], PARAMS, options)
            assert await rest(second.generate([1, 2], PARAMS, options)) == (
                [],
                "request_id_conflict",
            )

    play(worker_address, scenario)


def test_letting_go_and_coming_back(worker: subprocess.Popen[bytes], worker_address: str) -> None:
    """What was detached goes on; what was cancelled is not found."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        stream = first.generate(PROMPT, PARAMS, resumable())
        await some(stream, 5)
        stream.detach()
        again = await first.attach(stream.request_id)
        assert await rest(again) == (expected, "length")
        cancelled = first.generate(PROMPT, PARAMS, resumable())
        await some(cancelled, 1)
        cancelled.cancel()
        with pytest.raises(StreamNotFoundError):
            await first.attach(cancelled.request_id)
        with pytest.raises(StreamNotFoundError):
            await second.attach(secrets.token_bytes(16))

    play(worker_address, scenario)


def test_taking_over_at_the_same_client(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """Two connections of one web process: the later has all, the former is told."""

    async def scenario(first: chairlift.AsyncClient, _: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        stream = first.generate(PROMPT, PARAMS, resumable())
        await some(stream, 5)
        taken = await first.attach(stream.request_id)
        assert await rest(taken) == (expected, "length")
        assert (await rest(stream))[1] == "taken_over"

    play(worker_address, scenario)


def test_an_owner_stops_it_for_watchers(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """Cancelled by its owner, a request ends for all who only watch it, here and elsewhere."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        stream = first.generate(PROMPT, PARAMS, resumable())
        await some(stream, 1)
        watchers = [
            await client.attach(stream.request_id, takes_over=False) for client in (first, second)
        ]
        stream.cancel()
        assert [(await rest(watcher))[1] for watcher in watchers] == ["cancelled"] * 2
        assert first.num_live == second.num_live == 0

    play(worker_address, scenario)


def test_a_watcher_who_asks_the_same_inherits(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """Where a request was only watched, submitting it makes an heir; another prompt is refused."""

    async def scenario(first: chairlift.AsyncClient, second: chairlift.AsyncClient) -> None:
        expected = await whole(first)
        options = RequestOptions(secrets.token_bytes(16))
        stream = first.generate(PROMPT, PARAMS, options)
        await some(stream, 1)
        watcher = await second.attach(stream.request_id, takes_over=False)
        with pytest.raises(RequestIdConflictError):
            second.generate([1, 2], PARAMS, options)
        heir = second.generate(PROMPT, PARAMS, options)
        await anext(heir)
        await asyncio.sleep(0.05)  # the worker has heard of it
        stream.detach()
        tokens, end = await rest(heir)
        assert (tokens, end) == (expected[-len(tokens) :], "length")
        assert await rest(watcher) == (expected, "length")

    play(worker_address, scenario)


def test_attaching_before_the_first_token(
    worker: subprocess.Popen[bytes], worker_address: str
) -> None:
    """A request that waits in the queue can be taken over at the client that submitted it."""

    async def scenario(first: chairlift.AsyncClient, _: chairlift.AsyncClient) -> None:
        long = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
        running = [first.generate(PROMPT, long) for _ in range(4)]
        waiting = first.generate(PROMPT, PARAMS, resumable())
        async with asyncio.timeout(1):
            taken = await first.attach(waiting.request_id)
        assert (await rest(waiting))[1] == "taken_over"
        for stream in running:
            stream.cancel()
        assert (await rest(taken))[1] == "length"

    play(worker_address, scenario)


def test_what_is_no_request_id(worker: subprocess.Popen[bytes], worker_address: str) -> None:
    """It is refused at once, and the client is as good as before; a new client connects first."""

    async def run() -> None:
        async with chairlift.AsyncClient(worker_address, connect_timeout_s=30) as client:
            for wrong in ("chatcmpl-" + "0" * 32, b"nonsense"):
                with pytest.raises(InvalidRequestError, match="16 bytes"):
                    await client.attach(wrong)  # type: ignore[arg-type]
            with pytest.raises(StreamNotFoundError):
                await client.attach(secrets.token_bytes(16))
            assert await whole(client)

    asyncio.run(run())
