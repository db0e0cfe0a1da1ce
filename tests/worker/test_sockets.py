"""The worker's sockets against real peers: who gets in, and what the others do to the service."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import zmq

from chairlift.shared.addresses import Endpoints
from chairlift.shared.codec import MAX_REQUEST_BYTES, decode_request
from chairlift.shared.curve import FrontendCurve, WorkerCurve
from chairlift.shared.errors import AddressError, ProtocolError
from chairlift.worker import sockets as sockets_module
from chairlift.worker.sockets import WorkerSockets
from tests.tcp import Keys, free_address

Context = zmq.Context[zmq.Socket[bytes]]
TIMEOUT_S = 10.0
QUIET_S = 0.4
TOPIC = b"frontend"
ZMTP_3_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


@contextmanager
def bound(address: str, curve: WorkerCurve | None = None) -> Iterator[WorkerSockets]:
    sockets = WorkerSockets(Endpoints.parse(address), curve)
    try:
        yield sockets
    finally:
        sockets.close()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


class Peer:
    """A frontend's two sockets without its protocol."""

    def __init__(self, context: Context, address: str, curve: FrontendCurve | None = None) -> None:
        endpoints = Endpoints.parse(address)
        self.push = context.socket(zmq.PUSH)
        self.push.immediate = True
        self.sub = context.socket(zmq.SUB)
        self.sub.subscribe(TOPIC)
        for end, endpoint in ((self.push, endpoints.requests), (self.sub, endpoints.tokens)):
            end.linger = 0
            end.reconnect_ivl = 20
            if curve:
                curve.secure(end)
            end.connect(endpoint)

    def send(self, data: bytes) -> bool:
        """False when no connection has taken it."""
        try:
            self.push.send(data, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self.push.close()
        self.sub.close()


@contextmanager
def peer(context: Context, address: str, curve: FrontendCurve | None = None) -> Iterator[Peer]:
    end = Peer(context, address, curve)
    try:
        yield end
    finally:
        end.close()


@contextmanager
def disconnections(end: Peer) -> Iterator[zmq.Socket[bytes]]:
    """A socket that is readable once a connection of its PUSH has ended."""
    with closing(end.push.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor:
        yield monitor


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def is_served(sockets: WorkerSockets, frontend: Peer) -> None:
    """Asserts that a message comes in and that a frame goes out."""
    until(lambda: frontend.send(b"hello"))
    until(lambda: b"hello" in list(sockets.arrivals()))

    def has_heard() -> bool:
        list(sockets.subscriptions())
        sockets.send(TOPIC, b"frame")
        return frontend.sub.poll(20) > 0

    until(has_heard)
    assert frontend.sub.recv_multipart() == [TOPIC, b"frame"]


def all_that_comes(sockets: WorkerSockets) -> list[object]:
    """Arrivals and subscriptions until it has been quiet for QUIET_S."""
    came: list[object] = []
    until_quiet = time.monotonic() + QUIET_S
    while time.monotonic() < until_quiet:
        news = [*sockets.arrivals(), *sockets.subscriptions()]
        if news:
            came += news
            until_quiet = time.monotonic() + QUIET_S
        time.sleep(0.01)
    return came


def test_ipc_is_for_its_owner_alone(address: str) -> None:
    """The sockets' files have mode 0600, whatever the umask."""
    mask = os.umask(0)
    try:
        with bound(address):
            files = list(Path(address.removeprefix("ipc://")).iterdir())
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    finally:
        os.umask(mask)


def test_stale_files_are_no_obstacle(address: str, zmq_context: Context) -> None:
    """A worker that was killed leaves its files behind."""
    for name in ("requests", "tokens"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"{address.removeprefix('ipc://')}/{name}")
    with bound(address) as sockets, peer(zmq_context, address) as frontend:
        is_served(sockets, frontend)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_deleted_directory_is_noticed(
    is_replaced: bool, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no frontend can connect any more, the worker ends so that it can be started anew."""
    monkeypatch.setattr(sockets_module, "PATH_CHECK_S", 0.05)
    directory = Path(address.removeprefix("ipc://"))
    with bound(address) as sockets:
        time.sleep(0.1)
        assert list(sockets.arrivals()) == []
        shutil.rmtree(directory)
        if is_replaced:
            directory.mkdir(mode=0o700)
            for name in ("requests", "tokens"):
                (directory / name).touch()
        time.sleep(0.1)
        with pytest.raises(AddressError, match="deleted or replaced"):
            list(sockets.arrivals())


def test_tcp_has_no_files_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for in the file system."""
    monkeypatch.setattr(sockets_module, "PATH_CHECK_S", 0.0)
    with bound(free_address()) as sockets:
        assert list(sockets.arrivals()) == []


def test_taken_port_is_refused() -> None:
    """On tcp a second worker at the same address can't listen."""
    address = free_address()
    with bound(address), pytest.raises(AddressError, match="can't listen"):
        WorkerSockets(Endpoints.parse(address))


def test_taken_port_is_refused_with_keys(keys: Keys) -> None:
    """Nor with keys, and its authenticator ends with it."""
    address = free_address()
    with bound(address), pytest.raises(AddressError, match="can't listen"):
        WorkerSockets(Endpoints.parse(address), keys.of_worker())


def test_no_keys_no_listening_beyond_this_machine() -> None:
    """The sockets themselves insist, whoever makes them."""
    with pytest.raises(AddressError, match="chairlift keygen"):
        WorkerSockets(Endpoints.parse("tcp://*:5600"))


def test_a_listed_frontend_is_served(keys: Keys, zmq_context: Context) -> None:
    """The worker's key on one side and the frontend's on the list: both directions work."""
    address = free_address()
    with (
        bound(address, keys.of_worker()) as sockets,
        peer(zmq_context, address, keys.of(keys.listed)) as frontend,
    ):
        is_served(sockets, frontend)


def test_all_interfaces_with_keys(keys: Keys, zmq_context: Context) -> None:
    """With keys a worker may listen on every interface."""
    address = free_address()
    with (
        bound(address.replace("127.0.0.1", "*"), keys.of_worker()) as sockets,
        peer(zmq_context, address, keys.of(keys.listed)) as frontend,
    ):
        is_served(sockets, frontend)


def wrong_worker(keys: Keys) -> FrontendCurve:
    """Its own key is listed, but it takes another worker for the right one."""
    return FrontendCurve.load(keys.listed, keys.stranger.with_suffix(".key"))


@pytest.mark.parametrize(
    "curve_of",
    [lambda keys: None, lambda keys: keys.of(keys.stranger), wrong_worker],
    ids=["no key", "a key that is not listed", "another worker's key"],
)
def test_others_are_shut_out(
    curve_of: Callable[[Keys], FrontendCurve | None], keys: Keys, zmq_context: Context
) -> None:
    """Nothing of theirs gets in and no frame gets out to them, while a listed one is served."""
    address = free_address()
    with (
        bound(address, keys.of_worker()) as sockets,
        peer(zmq_context, address, curve_of(keys)) as intruder,
        peer(zmq_context, address, keys.of(keys.listed)) as frontend,
    ):
        is_served(sockets, frontend)
        taken = [intruder.send(b"intruder") for _ in range(10) if not time.sleep(0.02)]
        assert not any(taken)
        assert all_that_comes(sockets) == []
        sockets.send(TOPIC, b"secret")
        assert frontend.sub.poll(1000) and not intruder.sub.poll(100)


def test_without_its_authenticator_nobody_gets_in(keys: Keys, zmq_context: Context) -> None:
    """Were the thread with the list to die, the door would be shut and not open."""
    address = free_address()
    with bound(address, keys.of_worker()) as sockets:
        assert sockets._authenticator is not None
        sockets._authenticator.stop()
        with peer(zmq_context, address, keys.of(keys.listed)) as frontend:
            assert all_that_comes(sockets) == [] and not frontend.send(b"hello")


def test_a_new_list_counts_after_a_restart(keys: Keys, zmq_context: Context) -> None:
    """A frontend is admitted by its file in the directory, when the worker starts again."""
    address = free_address()
    with bound(address, keys.of_worker()):
        secret = keys.of(keys.stranger)
        keys.admit_the_stranger()
    with bound(address, keys.of_worker()) as sockets, peer(zmq_context, address, secret) as late:
        is_served(sockets, late)


def test_oversize_costs_its_sender_alone(address: str, zmq_context: Context) -> None:
    """A message beyond the limit ends its connection, which is made again; others go on."""
    with (
        bound(address) as sockets,
        peer(zmq_context, address) as offender,
        peer(zmq_context, address) as frontend,
    ):
        is_served(sockets, offender)
        is_served(sockets, frontend)
        with disconnections(offender) as offenders, disconnections(frontend) as others:
            offender.push.send(bytes(MAX_REQUEST_BYTES + 1))
            assert offenders.poll(30_000)
            is_served(sockets, frontend)
            assert not others.poll(0)
        # What is sent while a connection ends is lost with it: the protocol says it again.
        until(lambda: offender.send(b"again") and b"again" in list(sockets.arrivals()))
        is_served(sockets, offender)


def garbage(number: int) -> bytes:
    """What port scanners, other protocols and old ZeroMQ peers send, in turns."""
    length = number % 90
    return (
        os.urandom(length),
        b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" + os.urandom(64),  # TLS
        b"\x01\x00" + bytes([length + 1, 0]) + os.urandom(length),  # ZMTP 1.0: works without keys
        ZMTP_3_GREETING + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
        b"\x00" + struct.pack("B", length) + os.urandom(length),
        b"",
    )[number % 6]


@pytest.mark.parametrize("has_keys", [True, False])
def test_garbage_connections(has_keys: bool, keys: Keys, zmq_context: Context) -> None:
    """2,000 of them, half left open for a while: with keys nothing arrives, and without, nothing
    that counts; a frontend is served before, during and after."""
    address = free_address()
    endpoints = Endpoints.parse(address)
    ports = [int(e.rpartition(":")[2]) for e in (endpoints.requests, endpoints.tokens)]
    with (
        bound(address, keys.of_worker() if has_keys else None) as sockets,
        peer(zmq_context, address, keys.of(keys.listed) if has_keys else None) as frontend,
    ):
        is_served(sockets, frontend)
        arrived: list[bytes] = []
        for wave in range(20):
            with ExitStack() as connections:
                for number in range(100):
                    one = socket.create_connection(("127.0.0.1", ports[number % 2]))
                    one.sendall(garbage(number // 2))
                    connections.enter_context(one) if number < 50 else one.close()
                arrived += sockets.arrivals()
                if wave % 5 == 0:
                    is_served(sockets, frontend)
        arrived += [data for data in all_that_comes(sockets) if isinstance(data, bytes)]
        assert bool(arrived) is not has_keys
        for data in arrived:
            with pytest.raises((ProtocolError, ValueError)):
                decode_request(data)
        is_served(sockets, frontend)


@pytest.mark.parametrize("event", [b"\x02" + TOPIC, b"\xff" + TOPIC, TOPIC + b"!", b"", b"\x01"])
def test_only_subscriptions_are_events(event: bytes, address: str, zmq_context: Context) -> None:
    """What a hostile subscriber sends beside subscriptions is nobody's farewell."""
    with bound(address) as sockets, zmq_context.socket(zmq.XSUB) as hostile:
        hostile.linger = 0
        hostile.connect(Endpoints.parse(address).tokens)
        hostile.send(event)
        assert all_that_comes(sockets) == []
