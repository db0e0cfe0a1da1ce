"""A frontend's sockets against a real worker's: they find it, and find it again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import structlog

from chairlift.frontend import handshakes
from chairlift.frontend.connection import Connection
from chairlift.frontend.protocol import News
from chairlift.shared.addresses import Endpoints, make_private_directory
from chairlift.shared.codec import encode
from chairlift.shared.curve import FrontendCurve, WorkerCurve
from chairlift.shared.errors import AddressError
from chairlift.shared.messages import Greeting
from chairlift.worker.sockets import WorkerSockets
from tests.tcp import Keys, free_address

TIMEOUT_S = 10.0
ANSWER = Greeting(
    epoch=1,
    model="model",
    created=0,
    tokenizer=bytes(8),
    chat_template=bytes(8),
    vocab_size=512,
    max_model_len=512,
    frame_number=0,
)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


@contextmanager
def bound(address: str, curve: WorkerCurve | None = None) -> Iterator[WorkerSockets]:
    sockets = WorkerSockets(Endpoints.parse(address), curve)
    try:
        yield sockets
    finally:
        sockets.close()


class Frontend:
    """A connection and what came over it."""

    def __init__(self, address: str, curve: FrontendCurve | None) -> None:
        self.news: list[News] = []
        self.connection = Connection(Endpoints.parse(address), self.news.append, curve)

    async def is_served(self, sockets: WorkerSockets) -> None:
        """Asserts that the worker's greeting comes in and that a message goes out."""
        self.news.clear()
        self.connection.protocol.greeting = None
        await until(lambda: self.news, lambda: greet(sockets))
        self.connection.protocol.outgoing.append(b"hello")
        self.connection.flush()
        arrived: list[bytes] = []
        await until(lambda: b"hello" in arrived, lambda: arrived.extend(sockets.arrivals()))


@asynccontextmanager
async def connected(address: str, curve: FrontendCurve | None = None) -> AsyncIterator[Frontend]:
    frontend = Frontend(address, curve)
    try:
        yield frontend
    finally:
        frontend.connection.close()


def greet(sockets: WorkerSockets) -> None:
    for topic, is_subscription in sockets.subscriptions():
        if is_subscription:
            sockets.send(topic, encode(ANSWER))


async def until(condition: Callable[[], object], try_this: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            try_this()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("has_keys", [True, False])
def test_over_tcp(has_keys: bool, keys: Keys) -> None:
    """Both directions work, with keys and without, and again after the worker's restart."""

    async def run() -> None:
        address = free_address()
        ours, theirs = (keys.of_worker(), keys.of(keys.listed)) if has_keys else (None, None)
        async with connected(address, theirs) as frontend:
            for _ in range(2):
                with bound(address, ours) as sockets:
                    await frontend.is_served(sockets)

    asyncio.run(run())


def test_a_directory_made_again(address: str) -> None:
    """After its directory was deleted and made again, the worker is found where it was."""

    async def run() -> None:
        endpoints = Endpoints.parse(address)
        assert endpoints.directory is not None
        async with connected(address) as frontend:
            with bound(address) as sockets:
                await frontend.is_served(sockets)
                shutil.rmtree(endpoints.directory)
            make_private_directory(endpoints.directory)
            with bound(address) as sockets:
                await frontend.is_served(sockets)

    asyncio.run(run())


def test_refused_until_admitted(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontend whose key is not listed says so, and gets in when it is, without a restart."""
    monkeypatch.setattr(handshakes, "RETRY_S", 0.1)

    async def run() -> None:
        address = free_address()
        async with connected(address, keys.of(keys.stranger)) as frontend:
            with bound(address, keys.of_worker()):
                await until(lambda: logs, lambda: None)
                assert not frontend.news
            keys.admit_the_stranger()
            with bound(address, keys.of_worker()) as sockets:
                await frontend.is_served(sockets)

    with structlog.testing.capture_logs() as logs:
        asyncio.run(run())
    assert "doesn't know this frontend's key" in logs[0]["why"]
    assert len(logs) == len({entry["to"] for entry in logs}), "each socket complains once"


def another_workers_key(keys: Keys) -> FrontendCurve:
    return FrontendCurve.load(keys.listed, keys.stranger.with_suffix(".key"))


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (Keys.of_worker, lambda keys: None, "one side uses keys"),
        (lambda keys: None, lambda keys: keys.of(keys.listed), "one side uses keys"),
        (Keys.of_worker, another_workers_key, "--curve-worker is not the key"),
    ],
)
def test_refusals_are_explained(
    ours: Callable[[Keys], WorkerCurve | None],
    theirs: Callable[[Keys], FrontendCurve | None],
    why: str,
    keys: Keys,
) -> None:
    """Whatever is wrong with the keys, the frontend's log says what to look at."""

    async def run() -> None:
        address = free_address()
        with bound(address, ours(keys)):
            async with connected(address, theirs(keys)) as frontend:
                await until(lambda: logs, lambda: None)
                assert not frontend.news

    with structlog.testing.capture_logs() as logs:
        asyncio.run(run())
    assert why in logs[0]["why"]


def test_no_keys_no_connection_beyond_this_machine() -> None:
    """The sockets themselves insist, whoever makes them."""

    async def run() -> None:
        with pytest.raises(AddressError, match="chairlift keygen"):
            Frontend("tcp://example.org:5600", None)

    asyncio.run(run())
