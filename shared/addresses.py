"""Where a worker listens: one address for people, two socket endpoints for ZeroMQ."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import AddressError

MAX_IPC_PATH_BYTES = 107  # sun_path on Linux, less its terminator
TCP_HOST = re.compile(r"\*|[\w.-]+|\[[0-9a-fA-F:.]+(%\w+)?\]", re.ASCII)
WILDCARDS = {"*", "0.0.0.0", "[::]"}


def default_address() -> str:
    """`ipc://` in the user's runtime directory, or in one of the user's own under /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return f"ipc://{runtime}/chairlift"
    return f"ipc://{tempfile.gettempdir()}/chairlift-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The worker binds both; a frontend connects to both."""

    requests: str  # frontends push, the worker pulls
    tokens: str  # the worker publishes, frontends subscribe
    directory: Path | None  # of the ipc sockets and the lock; None for tcp
    is_local: bool = True  # no other machine gets there
    is_wildcard: bool = False  # every interface: to listen at, not to connect to

    @classmethod
    def parse(cls, address: str) -> Endpoints:
        """`ipc:///directory`, or `tcp://host:port` for that port and the next.

        Raises AddressError for anything else, and for ipc paths too long for the kernel. A tcp
        host beyond this machine needs keys: see `check_curve`.
        """
        if address.startswith("ipc://"):
            return cls._ipc(Path(address.removeprefix("ipc://")))
        if address.startswith("tcp://"):
            return cls._tcp(address)
        raise AddressError(f"address {address!r}: use ipc:///directory or tcp://127.0.0.1:port")

    @classmethod
    def _ipc(cls, directory: Path) -> Endpoints:
        if not directory.is_absolute():
            raise AddressError(f"ipc address needs an absolute directory, got {str(directory)!r}")
        requests = directory / "requests"
        if len(os.fsencode(requests)) > MAX_IPC_PATH_BYTES:
            raise AddressError(
                f"{requests} is longer than the {MAX_IPC_PATH_BYTES} bytes that a socket path may "
                "have: choose a shorter directory"
            )
        return cls(f"ipc://{requests}", f"ipc://{directory / 'tokens'}", directory)

    @classmethod
    def _tcp(cls, address: str) -> Endpoints:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65535:
            raise AddressError(f"address {address!r}: a port from 1 to 65534 must follow the host")
        if not TCP_HOST.fullmatch(host):
            raise AddressError(f"address {address!r}: {host!r} is no host; IPv6 goes in brackets")
        return cls(
            f"tcp://{host}:{port}",
            f"tcp://{host}:{int(port) + 1}",
            None,
            is_local=is_loopback(host),
            is_wildcard=host in WILDCARDS,
        )


def is_loopback(host: str) -> bool:
    """Whether the name or address, with or without brackets, stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_private_directory(directory: Path) -> None:
    """Creates the sockets' directory, mode 0700; refuses one that others own or can enter.

    Both sides do it: whoever else made the directory could read the prompts.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise AddressError(f"{directory} can't be used: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise AddressError(f"{directory} is a link or a file, no directory: choose another")
    if status.st_uid != os.getuid():
        raise AddressError(f"{directory} belongs to somebody else: choose another")
    if status.st_mode & 0o077:
        raise AddressError(
            f"{directory} can be entered by other users: chmod 700 it or choose another"
        )
