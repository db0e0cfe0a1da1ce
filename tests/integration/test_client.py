"""The client against a real worker process over real sockets."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import pytest

import chairlift
from chairlift.frontend import tokenizer_cache
from chairlift.shared.errors import (
    ClientClosedError,
    ContextLengthError,
    DeadlineExceededError,
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
    asyncio.run(client.close())
    with pytest.raises(ClientClosedError, match="closed"):
        asyncio.run(client.connect())


def test_a_running_loop_keeps_its_client(worker_address: str) -> None:
    """Another loop cannot close the sockets of one that runs; the client goes on working."""

    async def run() -> None:
        async with connected(worker_address) as client:
            with pytest.raises(ClientClosedError, match="event loop"):
                await asyncio.to_thread(asyncio.run, client.close())
            assert len((await client.complete("abc", max_tokens=2, **GREEDY)).token_ids) == 2

    asyncio.run(run())


def test_a_deadline_ends_every_call(worker_address: str) -> None:
    """What is not finished in `timeout_s` raises DeadlineExceededError, whatever it waits for, and
    leaves nothing at the worker."""

    async def run() -> None:
        async with connected(worker_address) as client:
            full = [client.stream(f"{i}", **GREEDY) for i in range(4)]
            for stream in full:
                await anext(stream)
            for call in (
                client.complete("abc", timeout_s=0.05, **GREEDY),
                client.chat([{"role": "user", "content": "abc"}], timeout_s=0.05, **GREEDY),
                client.embed("abc", timeout_s=1e-6),
                anext(client.stream("abc", timeout_s=1e-6)),
            ):
                with pytest.raises(DeadlineExceededError):
                    await call
            for stream in full:
                await stream.aclose()
            await until_idle(client)
            assert (await client.complete("abc", max_tokens=2, timeout_s=None, **GREEDY)).token_ids

    asyncio.run(run())


@pytest.mark.parametrize("timeout_s", [0, -1, 1e9, float("nan")])
def test_a_time_that_cannot_be_is_refused(worker_address: str, timeout_s: float) -> None:
    """A `timeout_s` that is no time to wait is an error that names it."""
    with (
        chairlift.Client(worker_address) as client,
        pytest.raises(InvalidRequestError, match="timeout_s") as refused,
    ):
        client.complete("abc", timeout_s=timeout_s)
    assert refused.value.param == "timeout_s"


def test_a_deadline_holds_without_a_worker() -> None:
    """A call with less time than `connect_timeout_s` does not wait longer for a worker."""

    async def run() -> None:
        async with chairlift.AsyncClient("ipc:///tmp/chairlift-nobody") as client:
            with pytest.raises(WorkerUnavailableError):
                async with asyncio.timeout(5):
                    await client.complete("abc", timeout_s=0.1)

    asyncio.run(run())


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


def test_threads_share_a_client(worker_address: str) -> None:
    """Sixteen threads that complete, stream to the end and leave early get the right answers, and
    nothing is left."""
    with chairlift.Client(worker_address, connect_timeout_s=60) as client:
        expected = client.complete("abc", max_tokens=12, **GREEDY).text

        def use(number: int) -> list[str]:
            texts = []
            for _ in range(4):
                texts.append(client.complete("abc", max_tokens=12, **GREEDY).text)
                with closing(client.stream(f"{number}", **GREEDY)) as deltas:
                    next(deltas)
                whole = client.stream("abc", max_tokens=12, **GREEDY)
                texts.append("".join(delta.text for delta in whole))
            return texts

        with ThreadPoolExecutor(16) as pool:
            for texts in pool.map(use, range(16), timeout=100):
                assert texts == [expected] * 8
        assert client._client.num_live == 0


def test_closing_ends_the_calls_of_all_threads(worker_address: str) -> None:
    """Threads that wait for answers when another one closes the client raise ChairliftErrors; none
    waits for ever."""
    client = chairlift.Client(worker_address, connect_timeout_s=60)
    client.connect()
    have_begun = threading.Barrier(9)

    def use(number: int) -> None:
        have_begun.wait(20)
        while True:
            client.complete(f"{number}", **GREEDY)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(use, number) for number in range(8)]
        have_begun.wait(20)
        client.close()
        for call in calls:
            assert isinstance(call.exception(20), chairlift.ChairliftError)


def test_a_stream_may_be_collected_anywhere(worker_address: str) -> None:
    """A stream that the collector of garbage finds, even in the client's own thread, ends its
    request and holds nobody up."""
    with chairlift.Client(worker_address, connect_timeout_s=60) as client:
        client.connect()
        stream = client.stream("abc", **GREEDY)
        next(stream)
        lost: list[object] = [stream]
        lost.append(lost)  # a cycle
        del stream, lost
        assert client._client.num_live == 1
        assert client._loop is not None
        collected = threading.Event()
        client._loop.call_soon_threadsafe(lambda: (gc.collect(), collected.set()))
        assert collected.wait(20)
        client.complete("abc", max_tokens=2, **GREEDY)
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
