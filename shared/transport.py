"""What both sides ask of ZeroMQ, whatever goes over it."""

from __future__ import annotations

import zmq

from .errors import AddressError

MIN_LIBZMQ = (4, 3, 5)  # before: CVE-2019-6250, CVE-2019-13132, CVE-2020-15166
# Only to notice dead machines. Tighter, a pause of the worker costs the requests it had taken:
# with 500 ms and a pause of 2 s, 733 to 998 of 2,000 were lost.
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 10_000


def check_libzmq() -> None:
    """Raises AddressError for a libzmq with known holes."""
    found = zmq.zmq_version_info()
    if found < MIN_LIBZMQ:
        raise AddressError(
            f"libzmq {_dotted(found)} has known holes, {_dotted(MIN_LIBZMQ)} is needed: "
            "pip install --upgrade --force-reinstall pyzmq, whose wheels bring it"
        )


def prepare(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Sets what the kind of endpoint asks for; call it before bind or connect."""
    socket.ipv6 = "[" in endpoint
    if endpoint.startswith("tcp://"):
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)
