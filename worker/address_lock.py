"""One worker at an address: on ipc, a second bind would succeed and steal every new connection."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ..shared.addresses import Endpoints, make_private_directory
from ..shared.errors import AddressError

RETRY_S = 0.05


class AddressLock:
    """An exclusive lock on the sockets' directory, held until `close` or the holder's end.

    A forked child holds it too. tcp needs none: there, a second bind fails.
    """

    def __init__(self, endpoints: Endpoints, patience_s: float = 0.0) -> None:
        """Raises AddressError when another worker holds it, and still does after `patience_s`, or
        the directory can't be used."""
        self._directory = endpoints.directory
        self._file = _locked(endpoints.directory, patience_s) if endpoints.directory else None

    def renew(self) -> None:
        """Again, where the directory or the file was deleted: what is locked then is no address.

        Raises AddressError as above. Only while nobody listens: the lock may be lost for a moment.
        """
        if self._directory is not None and not self._is_in_place(self._directory):
            self.close()
            self._file = _locked(self._directory, 0.0)

    def _is_in_place(self, directory: Path) -> bool:
        try:
            found = os.stat(directory / "lock")
            return self._file is not None and os.path.samestat(os.fstat(self._file), found)
        except OSError:
            return False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _locked(directory: Path, patience_s: float) -> int:
    make_private_directory(directory)
    try:
        file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AddressError(f"{directory / 'lock'} can't be opened: {error.strerror}") from None
    deadline = time.monotonic() + patience_s
    while not (is_ours := _is_locked_now(file)) and time.monotonic() < deadline:
        time.sleep(RETRY_S)
    if not is_ours:
        holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise AddressError(
            f"a worker (process {holder}) already listens in {directory}: stop it, or give this "
            "one and its frontends another --address ipc:///some/other/folder"
        )
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def _is_locked_now(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
