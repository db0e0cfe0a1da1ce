"""The two ZeroMQ sockets of a frontend, driven by an asyncio event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import zmq

from ..shared.addresses import Endpoints, make_private_directory
from ..shared.codec import MAX_REPLY_BYTES
from ..shared.curve import FrontendCurve, check_curve
from ..shared.errors import ProtocolError
from ..shared.logs import HostLog
from ..shared.transport import check_libzmq, prepare
from .handshakes import Handshakes
from .protocol import SYNC_INTERVAL_S, FrontendProtocol, News

log = HostLog(__name__)

HIGH_WATER_MARK = 1000
MAX_RECEIVED = 500  # messages in a row before other tasks have their turn
SEND_RETRY_S = 0.01  # while the worker takes nothing: it is away, or far behind
CLOSE_LINGER_MS = 100  # for the cancels of what was unfinished
TICK_S = SYNC_INTERVAL_S / 4


class Connection:
    """Moves bytes between the sockets and the protocol; hands news to `on_news`.

    Belongs to the event loop that it was made in. Never waits: what the worker doesn't take now is
    kept and tried again. Raises AddressError when the address is not ours alone, or asks for keys
    that are not there.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        on_news: Callable[[News], None],
        curve: FrontendCurve | None = None,
    ) -> None:
        check_libzmq()
        check_curve(endpoints, curve)
        if endpoints.directory is not None:
            make_private_directory(endpoints.directory)
        self._loop = asyncio.get_running_loop()
        self._on_news = on_news
        self.protocol = FrontendProtocol(secrets.token_bytes(8), self._loop.time())
        self._context = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.rcvhwm = HIGH_WATER_MARK
        self._sub.maxmsgsize = MAX_REPLY_BYTES
        self._sub.subscribe(self.protocol.frontend_id)
        self._push = self._context.socket(zmq.PUSH)
        self._push.sndhwm = HIGH_WATER_MARK
        self._push.immediate = True  # nothing queues for a worker that isn't there
        self._handshakes: list[Handshakes] = []
        for socket, endpoint in ((self._sub, endpoints.tokens), (self._push, endpoints.requests)):
            socket.linger = 0
            socket.reconnect_ivl = 20
            socket.reconnect_ivl_max = 200
            prepare(socket, endpoint)
            if curve:
                curve.secure(socket)
            if endpoints.directory is None:
                self._handshakes.append(Handshakes(socket, endpoint))
            socket.connect(endpoint)
        self._retry: asyncio.TimerHandle | None = None
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._loop.add_reader(self._sub.fileno(), self._receive)
        self._receiving = self._loop.call_soon(self._receive)

    def flush(self) -> None:
        """Sends what the protocol has to say, as far as the worker takes it."""
        outgoing = self.protocol.outgoing
        try:
            while outgoing:
                self._push.send(outgoing[0], zmq.DONTWAIT)
                outgoing.popleft()
        except zmq.Again:
            if self._retry is None:
                self._retry = self._loop.call_later(SEND_RETRY_S, self._flush_again)

    def speak(self) -> None:
        """What is due, without waiting for the next tick."""
        for item in self.protocol.tick(self._loop.time()):
            self._on_news(item)
        self.flush()

    def close(self) -> None:
        """Also when the event loop was closed before."""
        self._ticker.cancel()
        self._receiving.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sub.fileno())
        self._context.destroy(linger=CLOSE_LINGER_MS)

    def _flush_again(self) -> None:
        self._retry = None
        self.flush()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self.speak()
        for handshakes in self._handshakes:
            handshakes.check(self._loop.time())
        self._receive()  # should an edge of the file descriptor ever be missed

    def _receive(self) -> None:
        """Drains the socket: its file descriptor speaks up on changes only."""
        for _ in range(MAX_RECEIVED):
            try:
                _, data = self._sub.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            except ValueError:  # not two parts
                log.warning("malformed message from the worker dropped")
                continue
            self._take(data)
        else:
            self._receiving = self._loop.call_soon(self._receive)
        self.flush()

    def _take(self, data: bytes) -> None:
        try:
            news = self.protocol.receive(data, self._loop.time())
        except (ProtocolError, ValueError) as error:
            log.warning("malformed message from the worker dropped", why=str(error))
            return
        for item in news:
            self._on_news(item)
