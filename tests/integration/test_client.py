"""The client against a real worker process over real sockets."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

import chairlift
from chairlift.frontend import tokenizer_cache
from chairlift.shared.errors import (
    ClientClosedError,
    ContextLengthError,
    InvalidRequestError,
    RequestFailedError,
    TokenizerMismatchError,
    WorkerUnavailableError,
)
from chairlift.shared.tokenizer import Tokenizer
from tests.tiny_model import MAX_MODEL_LEN, make_tiny_model

pytestmark = pytest.mark.usefixtures("worker")
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[chairlift.AsyncClient]:
    async with chairlift.AsyncClient(address, connect_timeout_s=60) as client:
        await client.connect()
        yield client


async def until_idle(client: chairlift.AsyncClient) -> None:
    """Returns when the worker says that nothing runs and every block is free."""
    async with asyncio.timeout(20):
        while True:
            await asyncio.sleep(0.02)
            stats = client.stats
            is_idle = not stats.num_running + stats.num_waiting
            if is_idle and stats.num_free_blocks == stats.num_blocks:
                return


def test_an_answer_is_the_same_alone_and_among_others(worker_address: str) -> None:
    """Seeded requests run together give what each of them gives alone."""

    async def run() -> None:
        async with connected(worker_address) as client:
            calls = [
                client.complete(f"abc {i}", max_tokens=30, seed=i, ignore_eos=True)
                for i in range(8)
            ]
            together = await asyncio.gather(*calls)
            for i, answer in enumerate(together):
                alone = await client.complete(f"abc {i}", max_tokens=30, seed=i, ignore_eos=True)
                assert alone.token_ids == answer.token_ids
                assert alone.text == answer.text
            assert len({answer.text for answer in together}) > 1

    asyncio.run(run())


def test_streams_interleave(worker_address: str) -> None:
    """More streams than the worker has places for all get on, and four at a time side by side."""

    async def run() -> None:
        async with connected(worker_address) as client:
            order: list[int] = []

            async def one(number: int) -> None:
                async for _ in client.stream(f"x{number}", max_tokens=450, **GREEDY):
                    order.append(number)

            await asyncio.gather(*(one(i) for i in range(4)))
            changes = sum(a != b for a, b in pairwise(order))
            assert changes > 20, order

    asyncio.run(run())


def test_leaving_a_stream_frees_everything(worker_address: str) -> None:
    """Breaking out of the loop cancels the request at the worker."""

    async def run() -> None:
        async with connected(worker_address) as client:
            async for _ in client.stream("abc", **GREEDY):
                break
            await until_idle(client)
            assert client.num_live == 0

    asyncio.run(run())


def test_cancelled_tasks_leave_nothing(worker_address: str) -> None:
    """Tasks cancelled at any moment leave no request and no block behind."""

    async def run() -> None:
        async with connected(worker_address) as client:
            for round_number in range(20):
                tasks = [
                    asyncio.ensure_future(client.complete(f"abc{i}", max_tokens=200, **GREEDY))
                    for i in range(6)
                ]
                await asyncio.sleep(0.003 * round_number)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await until_idle(client)
            assert client.num_live == 0

    asyncio.run(run())


def test_a_slow_reader_gets_longer_deltas(worker_address: str) -> None:
    """A reader that looks once a while misses nothing."""

    async def run() -> None:
        async with connected(worker_address) as client:
            whole = await client.complete("abc", max_tokens=60, **GREEDY)
            text, num_deltas = "", 0
            async for delta in client.stream("abc", max_tokens=60, **GREEDY):
                await asyncio.sleep(0.05)
                text, num_deltas = text + delta.text, num_deltas + 1
            assert text == whole.text
            assert num_deltas < 60

    asyncio.run(run())


def test_chat_goes_through_the_template(worker_address: str) -> None:
    """A conversation is rendered by the model's template, which the worker sent along."""

    async def run() -> None:
        async with connected(worker_address) as client:
            answer = await client.chat([{"role": "user", "content": "aa"}], max_tokens=3, **GREEDY)
            ids = client.tokenizer.encode_chat([{"role": "user", "content": "aa"}])
            assert answer.num_prompt_tokens == len(ids)
            assert (
                answer.token_ids == (await client.complete(ids, max_tokens=3, **GREEDY)).token_ids
            )

    asyncio.run(run())


def test_prefix_cache_is_reported_and_changes_nothing(worker_address: str) -> None:
    """A repeated long prompt is taken from the cache and answered alike."""

    async def run() -> None:
        async with connected(worker_address) as client:
            prompt = [5 + i % 97 for i in range(200)]
            first = await client.complete(prompt, max_tokens=8, **GREEDY)
            again = await client.complete(prompt, max_tokens=8, **GREEDY)
            assert first.num_cached_tokens == 0
            assert again.num_cached_tokens == 192
            assert again.token_ids == first.token_ids

    asyncio.run(run())


def test_bad_requests_are_refused_in_words(worker_address: str) -> None:
    """What can't be served is refused at once, and the reason says what to change."""

    async def run() -> None:
        async with connected(worker_address) as client:
            with pytest.raises(ContextLengthError, match=str(MAX_MODEL_LEN)):
                await client.complete([3] * 500, max_tokens=100)
            with pytest.raises(InvalidRequestError, match="empty"):
                await client.complete([])
            with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
                await client.complete([100_000], max_tokens=2)
            with pytest.raises(InvalidRequestError, match="complete takes a text"):
                await client.chat("Hello!")  # type: ignore[arg-type]  # the mistake in question
            with pytest.raises(InvalidRequestError, match="temprature"):
                await client.complete("a", temprature=1)
            with pytest.raises(InvalidRequestError, match="vocabulary"):
                await client.complete("a", max_tokens=2, stop_token_ids=[10**6])

    asyncio.run(run())


def test_requests_before_the_worker_answers_are_refused() -> None:
    """Without a worker there is an error that says how to start one."""

    async def run() -> None:
        async with chairlift.AsyncClient("ipc:///tmp/chairlift-nobody") as client:
            with pytest.raises(WorkerUnavailableError, match="chairlift worker"):
                await client.connect(timeout_s=0.2)

    asyncio.run(run())


def test_another_tokenizer_is_refused(worker_address: str, tmp_path: Path) -> None:
    """A client that was given another model's tokenizer is told so."""
    other = tmp_path / "other"
    other.mkdir()
    make_tiny_model(other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("word0", "word_0"))

    async def run() -> None:
        tokenizer = Tokenizer.from_folder(other)
        async with chairlift.AsyncClient(worker_address, tokenizer=tokenizer) as client:
            with pytest.raises(TokenizerMismatchError):
                await client.connect()

    asyncio.run(run())


def test_ids_from_another_tokenizer_are_refused_by_the_worker(worker_address: str) -> None:
    """Even a client that does not check can't have foreign ids continued."""

    async def run() -> None:
        async with connected(worker_address) as client:
            connection = client._connection
            assert connection is not None
            greeting = connection.protocol.greeting
            assert greeting is not None
            fields = {name: getattr(greeting, name) for name in greeting.__struct_fields__}
            connection.protocol.greeting = type(greeting)(**{**fields, "tokenizer": b"12345678"})
            with pytest.raises(RequestFailedError, match="another tokenizer"):
                stream = client.stream([5], max_tokens=2)
                await anext(stream)

    asyncio.run(run())


def test_tokenizer_is_cached_by_its_fingerprint(worker_address: str) -> None:
    """The second client finds the tokenizer that the first one was sent; a broken file is
    fetched again."""

    async def run() -> None:
        for _ in range(2):
            async with connected(worker_address) as client:
                assert client.worker is not None
                cached = tokenizer_cache.load(client.worker)
                assert cached is not None
                assert cached.fingerprint == client.worker.tokenizer
                path = tokenizer_cache._path(client.worker.tokenizer, client.worker.chat_template)
                path.write_bytes(b"broken")
                assert tokenizer_cache.load(client.worker) is None

    asyncio.run(run())


def test_closed_client_says_so(worker_address: str) -> None:
    """Closing ends the open streams with an abort; later calls raise."""

    async def run() -> None:
        client = chairlift.AsyncClient(worker_address)
        await client.connect()
        stream = client.stream("abc", **GREEDY)
        await anext(stream)
        await client.close()
        with pytest.raises(RequestFailedError, match="cancelled"):
            async for _ in stream:
                pass
        with pytest.raises(ClientClosedError, match="closed"):
            await client.complete("a")

    asyncio.run(run())


def test_another_event_loop_is_refused(worker_address: str) -> None:
    """A client belongs to the loop that first used it."""
    client = chairlift.AsyncClient(worker_address)
    asyncio.run(client.connect())
    with pytest.raises(ClientClosedError, match="event loop"):
        asyncio.run(client.connect())
    assert client._connection is not None
    client._connection._context.destroy(linger=0)


def test_blocking_client_streams_and_completes(worker_address: str) -> None:
    """The blocking client gives the same answers, from several threads at once."""
    with chairlift.Client(worker_address, connect_timeout_s=60) as client:
        expected = client.complete("abc", max_tokens=20, **GREEDY)
        results: list[str] = []

        def read() -> None:
            deltas = client.stream("abc", max_tokens=20, **GREEDY)
            results.append("".join(delta.text for delta in deltas))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [expected.text] * 4
    with pytest.raises(ClientClosedError):
        client.complete("a")


def test_blocking_stream_can_be_left_early(worker_address: str) -> None:
    """Breaking out of a blocking stream cancels it."""
    with chairlift.Client(worker_address) as client:
        for _ in client.stream("abc", **GREEDY):
            break
        assert client._client.num_live == 0


def _use_in_child(client: chairlift.Client, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        answers.put(client.complete("abc", max_tokens=2).text)
    except Exception as error:
        answers.put(type(error).__name__)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_clients_across_a_fork(worker_address: str) -> None:
    """A client made before a fork works in the child; one used before raises there."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    unused = chairlift.Client(worker_address)
    used = chairlift.Client(worker_address)
    with used:
        used.connect()
        for client, expected in ((unused, None), (used, "ClientClosedError")):
            child = fork.Process(target=_use_in_child, args=(client, answers))
            child.start()
            answer = answers.get()
            child.join(20)
            assert child.exitcode == 0
            assert answer == expected or (expected is None and answer != "ClientClosedError")


def test_client_needs_no_torch(worker_address: str) -> None:
    """A program that uses the client never loads torch, numpy or FastAPI."""
    program = (
        "import sys, chairlift\n"
        f"with chairlift.Client({worker_address!r}) as client:\n"
        "    print(len(client.complete('abc', max_tokens=3, ignore_eos=True).token_ids))\n"
        "print([m for m in ('torch', 'numpy', 'fastapi', 'pydantic') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["3", "[]"], done.stdout + done.stderr
