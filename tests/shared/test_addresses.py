"""Addresses are checked before any socket sees them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from chairlift.shared.addresses import Endpoints, default_address, make_private_directory
from chairlift.shared.errors import AddressError


def test_ipc_directory_holds_both_sockets() -> None:
    """An ipc address is a directory with one socket for each direction."""
    endpoints = Endpoints.parse("ipc:///run/chairlift")
    assert endpoints.requests == "ipc:///run/chairlift/requests"
    assert endpoints.tokens == "ipc:///run/chairlift/tokens"


def test_tcp_takes_two_ports() -> None:
    """A tcp address means its port and the next."""
    endpoints = Endpoints.parse("tcp://127.0.0.1:5600")
    assert (endpoints.requests, endpoints.tokens) == (
        "tcp://127.0.0.1:5600",
        "tcp://127.0.0.1:5601",
    )


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", "use ipc"),
        ("http://localhost:1", "use ipc"),
        ("ipc://relative", "absolute"),
        ("ipc:///" + "x" * 120, "107"),
        ("tcp://127.0.0.1", "port"),
        ("tcp://127.0.0.1:0", "port"),
        ("tcp://127.0.0.1:65535", "port"),
        ("tcp://:5600", "no host"),
        ("tcp://::1:5600", "brackets"),
        ("tcp://127.0.0.1:0;10.0.0.1:5600", "no host"),
        ("tcp://127.0.0.1:5600/x:5600", "no host"),
        ("tcp://a b:5600", "no host"),
    ],
)
def test_bad_addresses_say_what_to_change(address: str, complaint: str) -> None:
    """Each bad address is refused with a hint."""
    with pytest.raises(AddressError, match=complaint):
        Endpoints.parse(address)


@pytest.mark.parametrize(
    ("host", "is_local", "is_wildcard"),
    [
        ("127.0.0.1", True, False),
        ("localhost", True, False),
        ("[::1]", True, False),
        ("0.0.0.0", False, True),
        ("*", False, True),
        ("[::]", False, True),
        ("10.0.0.1", False, False),
        ("lo", False, False),
        ("localhost.example.org", False, False),
        ("[fe80::1%eth0]", False, False),
    ],
)
def test_hosts_are_told_apart(host: str, is_local: bool, is_wildcard: bool) -> None:
    """What is not certainly this machine counts as beyond it."""
    endpoints = Endpoints.parse(f"tcp://{host}:5600")
    assert (endpoints.is_local, endpoints.is_wildcard) == (is_local, is_wildcard)


def test_default_address_is_valid() -> None:
    """Without any setting there is an address that works."""
    assert Endpoints.parse(default_address()).directory is not None


def test_default_address_prefers_the_runtime_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """XDG_RUNTIME_DIR is used where there is one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_address() == f"ipc://{tmp_path}/chairlift"


def test_private_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The sockets' directory is created with mode 0700, whatever the umask."""
    make_private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_open_directory_is_refused(tmp_path: Path) -> None:
    """A directory that others can enter is refused with the command that mends it."""
    tmp_path.chmod(0o755)
    with pytest.raises(AddressError, match="chmod 700"):
        make_private_directory(tmp_path)


def test_link_is_refused(tmp_path: Path) -> None:
    """A link could lead into somebody else's directory."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(AddressError, match="no directory"):
        make_private_directory(tmp_path / "link")
