"""CURVE on tcp: who may talk to a worker, and which worker a frontend trusts.

Keys are pyzmq's certificate files, which `chairlift keygen` makes. RFC 25 and 26 are the
handshake, RFC 27 (ZAP) is how the worker looks a key up.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from zmq.auth import load_certificate
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from .addresses import Endpoints
from .errors import AddressError

KEY_BYTES = 32
ZAP_DOMAIN = "chairlift"


@dataclass(frozen=True, slots=True)
class WorkerCurve:
    """A worker's own key, and the directory with the public keys of its frontends.

    The directory is read when the worker starts: a change counts from the next start on.
    """

    secret_key: bytes = field(repr=False)
    frontends: Path

    @classmethod
    def load(cls, key: Path, frontends: Path) -> Self:
        """Raises AddressError for a file that is no key, is open to others, or for no frontends."""
        _refuse_open(frontends, stat.S_IWGRP | stat.S_IWOTH)
        files = sorted(frontends.glob("*.key"))
        if not files:
            raise AddressError(
                f"{frontends} holds no .key file, so nobody could connect: copy the public keys of "
                "the frontends into it"
            )
        for file in files:
            _public_key(file)
        return cls(_secret_key(key), frontends)

    def authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """Started; to be stopped before the context ends."""
        authenticator = ThreadAuthenticator(context)
        authenticator.configure_curve(domain=ZAP_DOMAIN, location=self.frontends)
        authenticator.start()
        return authenticator

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Call it before bind. Without an authenticator nobody is let in."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret_key
        socket.zap_domain = ZAP_DOMAIN.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True, slots=True)
class FrontendCurve:
    """A frontend's own key, and the public key of its worker."""

    secret_key: bytes = field(repr=False)
    worker_key: bytes

    @classmethod
    def load(cls, key: str | Path, worker: str | Path) -> Self:
        """From a frontend's .key_secret file and its worker's .key file.

        Raises AddressError for a file that is no key or is open to others.
        """
        return cls(_secret_key(Path(key)), _public_key(Path(worker)))

    @classmethod
    def given(cls, key: Path | None, worker: Path | None) -> Self | None:
        """As `load`, or None without both; raises AddressError for one without the other, too."""
        match key, worker:
            case None, None:
                return None
            case Path(), Path():
                return cls.load(key, worker)
        raise AddressError(
            "--curve-key and --curve-worker go together, as do CHAIRLIFT_CURVE_KEY and "
            "CHAIRLIFT_CURVE_WORKER: give both or none"
        )

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Call it before connect."""
        socket.curve_secretkey = self.secret_key
        socket.curve_publickey = zmq.curve_public(self.secret_key)
        socket.curve_serverkey = self.worker_key


def check_curve(endpoints: Endpoints, curve: WorkerCurve | FrontendCurve | None) -> None:
    """Raises AddressError for keys where they do nothing, and for none where they are needed."""
    if curve is not None and endpoints.directory is not None:
        raise AddressError(
            f"keys do nothing for {endpoints.requests}, which only its owner can open: leave "
            "--curve-key out, or use a tcp address"
        )
    if curve is None and not endpoints.is_local:
        raise AddressError(
            f"{endpoints.requests} leaves this machine, where anyone could read and write the "
            "streams: make keys with `chairlift keygen`, then give the worker --curve-key and "
            "--curve-frontends, its frontends --curve-key and --curve-worker, and a Python client "
            "curve=FrontendCurve.load(key, worker); or stay here with a loopback address or ipc"
        )
    if isinstance(curve, FrontendCurve) and endpoints.is_wildcard:
        raise AddressError(f"{endpoints.requests} names no machine: give the frontend the worker's")


def _secret_key(path: Path) -> bytes:
    _refuse_open(path, stat.S_IRWXG | stat.S_IRWXO)
    _, secret = _certificate(path)
    if secret is None:
        raise AddressError(f"{path} holds no secret key: give the file that ends in .key_secret")
    return secret


def _public_key(path: Path) -> bytes:
    _refuse_open(path, stat.S_IWGRP | stat.S_IWOTH)
    public, secret = _certificate(path)
    if secret is not None:
        raise AddressError(
            f"{path} holds a secret key, which should never leave its machine: give the file that "
            "ends in .key, and make new keys if the secret was copied"
        )
    return public


def _certificate(path: Path) -> tuple[bytes, bytes | None]:
    try:
        if not path.is_file():  # a FIFO would wait for somebody who writes
            raise ValueError("no regular file")
        public, secret = load_certificate(path)
        if all(len(z85.decode(key)) == KEY_BYTES for key in (public, secret) if key is not None):
            return public, secret
    except (OSError, ValueError, KeyError, struct.error):
        pass
    raise AddressError(f"{path} is no key file: make one with `chairlift keygen`")


def _refuse_open(path: Path, forbidden: int) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise AddressError(f"{path} can't be read: {error.strerror}") from None
    if mode & forbidden:
        verb = "read" if forbidden & stat.S_IROTH else "written"
        remedy = "go=" if forbidden & stat.S_IROTH else "go-w"
        raise AddressError(f"{path} can be {verb} by other users: chmod {remedy} {path}")
