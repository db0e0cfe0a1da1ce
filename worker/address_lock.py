"""One worker at an address: on ipc, a second bind would succeed and steal every new connection."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..shared.addresses import Endpoints, make_private_directory
from ..shared.errors import AddressError


class AddressLock:
    """An exclusive lock on the sockets' directory, held until `close` or the holder's end.

    A forked child holds it too. tcp needs none: there, a second bind fails.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        """Raises AddressError when another worker holds it or the directory can't be used."""
        self._file = _locked(endpoints.directory) if endpoints.directory else None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _locked(directory: Path) -> int:
    make_private_directory(directory)
    try:
        file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AddressError(f"{directory / 'lock'} can't be opened: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise AddressError(
            f"a worker (process {holder}) already listens in {directory}: stop it, or give this "
            "one and its frontends another --address ipc:///some/other/folder"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
