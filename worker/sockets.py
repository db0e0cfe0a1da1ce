"""The worker's two sockets: PULL for requests, XPUB for tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import zmq

from ..shared.addresses import Endpoints
from ..shared.codec import MAX_REQUEST_BYTES
from ..shared.curve import WorkerCurve, check_curve
from ..shared.errors import AddressError
from ..shared.transport import check_libzmq, prepare

HIGH_WATER_MARK = 1000
LINGER_MS = 1000
MAX_ARRIVALS = 256  # messages taken in between two steps
ARRIVALS_S = 0.02
TOPIC_BYTES = 8
MAX_TOPICS = 1024
MAX_SUBSCRIPTION_BYTES = 1024  # a byte and the topic; the rest is for CURVE's handshake
PATH_CHECK_S = 1.0


class WorkerSockets:
    """Binds both, at an address that the caller has locked.

    XPUB is set so that a stalled frontend costs a failed send instead of lost frames (NODROP),
    every subscription is seen (VERBOSER), and nobody can subscribe to all topics (MANUAL). With
    `curve`, a thread decides by the frontend's key who gets in at all.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        curve: WorkerCurve | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        """Raises AddressError when the address is taken, or asks for keys that are not there."""
        check_libzmq()
        check_curve(endpoints, curve)
        self._context = zmq.Context()
        self._authenticator = curve.authenticator(self._context) if curve else None
        self._pull = self._context.socket(zmq.PULL)
        self._pull.rcvhwm = HIGH_WATER_MARK
        self._pull.maxmsgsize = max_request_bytes
        self._xpub = self._context.socket(zmq.XPUB)
        for option in (zmq.XPUB_NODROP, zmq.XPUB_VERBOSER, zmq.XPUB_MANUAL):
            self._xpub.setsockopt(option, 1)
        self._xpub.sndhwm = HIGH_WATER_MARK
        self._xpub.maxmsgsize = MAX_SUBSCRIPTION_BYTES
        self._topics: set[bytes] = set()
        self._poller = zmq.Poller()
        for socket, endpoint in ((self._pull, endpoints.requests), (self._xpub, endpoints.tokens)):
            socket.linger = LINGER_MS
            prepare(socket, endpoint)
            if curve:
                curve.secure(socket)
            self._bind(socket, endpoint)
            self._poller.register(socket, zmq.POLLIN)
        paths = (e.removeprefix("ipc://") for e in (endpoints.requests, endpoints.tokens))
        self._files = {path: _identity(path) for path in paths} if endpoints.directory else {}
        self._next_check = time.monotonic() + PATH_CHECK_S

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        mask = os.umask(0o177)  # ipc sockets are files: for their owner alone
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"can't listen at {endpoint}: {error.strerror}") from None
        finally:
            os.umask(mask)

    def wait(self, timeout_s: float) -> None:
        """Until something has arrived, for so long at most."""
        self._poller.poll(round(timeout_s * 1000))

    def subscriptions(self) -> Iterator[tuple[bytes, bool]]:
        """Topics that came (True) and went (False) since the last call, as far as there is time."""
        for event in _in_time(self._xpub):
            topic, is_subscription = event[1:], event[:1] == b"\x01"
            if len(topic) != TOPIC_BYTES or event[0] > 1:
                continue
            if not is_subscription:
                self._xpub.setsockopt(zmq.UNSUBSCRIBE, topic)
                self._topics.discard(topic)
            elif topic in self._topics or len(self._topics) < MAX_TOPICS:
                self._xpub.setsockopt(zmq.SUBSCRIBE, topic)
                self._topics.add(topic)
            else:
                continue
            yield topic, is_subscription

    def arrivals(self) -> Iterator[bytes]:
        """The requests that wait, as far as there is time.

        Raises AddressError when nobody can connect any more: the sockets' files are gone.
        """
        self._check_files()
        yield from _in_time(self._pull)

    def send(self, topic: bytes, body: bytes) -> bool:
        """False when the topic's reader is so far behind that the frame would have to wait."""
        try:
            self._xpub.send_multipart((topic, body), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=LINGER_MS)

    def _check_files(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + PATH_CHECK_S
        for path, identity in self._files.items():
            if _identity(path) != identity:
                raise AddressError(f"{path} was deleted or replaced: no frontend can connect")


def _in_time(socket: zmq.Socket[bytes]) -> Iterator[bytes]:
    """Messages up to MAX_ARRIVALS, and for so long as ARRIVALS_S with what is done about them:
    whoever sends without end must not hold up the next step."""
    deadline = time.monotonic() + ARRIVALS_S
    for _ in range(MAX_ARRIVALS):
        try:
            yield socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return
        if time.monotonic() >= deadline:
            return


def _identity(path: str) -> tuple[int, int] | None:
    """Never that of a file made later: the kernel keeps a bound socket's inode."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
