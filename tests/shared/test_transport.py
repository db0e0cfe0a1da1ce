"""What is set on every socket, and on tcp alone."""

from __future__ import annotations

import pytest
import zmq

from chairlift.shared.errors import AddressError
from chairlift.shared.transport import check_libzmq, prepare

Context = zmq.Context[zmq.Socket[bytes]]


def test_heartbeats_are_slow_on_tcp_and_absent_on_ipc(zmq_context: Context) -> None:
    """They only notice dead machines: tight ones would lose what a paused worker has taken."""
    for endpoint, expected in (("tcp://h:1", (2_000, 10_000)), ("ipc:///d/requests", (0, -1))):
        with zmq_context.socket(zmq.PUSH) as socket:
            prepare(socket, endpoint)
            assert (socket.heartbeat_ivl, socket.heartbeat_timeout) == expected


def test_ipv6_where_it_is_meant(zmq_context: Context) -> None:
    """Brackets are an IPv6 address."""
    for endpoint, expected in (("tcp://[::1]:1", 1), ("tcp://127.0.0.1:1", 0)):
        with zmq_context.socket(zmq.PUSH) as socket:
            prepare(socket, endpoint)
            assert socket.ipv6 == expected


@pytest.mark.parametrize("version", [(4, 3, 4), (4, 2, 9), (3, 9, 9)])
def test_an_old_libzmq_is_refused(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be taken over before anyone is authenticated."""
    check_libzmq()
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: version)
    with pytest.raises(AddressError, match=r"4\.3\.5 is needed: pip install"):
        check_libzmq()
