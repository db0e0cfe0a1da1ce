"""Handshakes that a worker refused. libzmq takes them as final; here, they are tried again."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..shared.logs import HostLog

log = HostLog(__name__)

RETRY_S = 1.0
COMPLAINT_INTERVAL_S = 30.0
REASONS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: (
        "the worker doesn't know this frontend's key: copy its .key file into the worker's "
        "--curve-frontends directory and start the worker again"
    ),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: (
        "one side uses keys and the other none, or no worker listens there"
    ),
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: (
        "the other side hung up: one side uses keys and the other none, or --curve-worker is not "
        "the key of this worker"
    ),
}


class Handshakes:
    """Watches those of one socket, from its first `connect` on."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._events = socket.get_monitor_socket(sum(REASONS))
        self._last_complaint = float("-inf")
        self._next_check = float("-inf")

    def check(self, now: float) -> None:
        """Call it now and then, as long as the socket is open."""
        if now < self._next_check:
            return
        failure = None
        while self._events.poll(0):
            failure = recv_monitor_message(self._events)["event"]
        if failure is None:
            return
        self._next_check = now + RETRY_S
        if now - self._last_complaint >= COMPLAINT_INTERVAL_S:
            self._last_complaint = now
            log.warning("no connection", to=self._endpoint, why=REASONS[failure])
        if failure != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # after that one, libzmq does it
            self._socket.disconnect(self._endpoint)
            self._socket.connect(self._endpoint)
