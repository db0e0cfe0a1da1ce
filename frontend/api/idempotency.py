"""Idempotency-Key: a request asked again is the same request, on any frontend.

As in https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

import orjson
from pydantic import BaseModel

from ...shared.addresses import Endpoints, make_private_directory
from ...shared.errors import ChairliftError, InvalidRequestError
from ...shared.logs import HostLog
from ...shared.settings import ServeSettings
from ..response_id import Endpoint, ResponseId
from .errors import NO_RETRY, HttpError

HEADER = "Idempotency-Key"
KEY = re.compile(r"[!-~]{1,255}")
SECRET_BYTES = 32
MAX_SECRET_BYTES = 4096
SECRET_NAME = "secret"
OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IRWXO

log = HostLog(__name__)


class Idempotency:
    """Makes request ids of keys. The secret keeps others from guessing them: an id is the
    permission to read the answer."""

    def __init__(self, secret: bytes | None, directory: Path | None = None) -> None:
        """Without a secret, that of the directory is taken, or put there, at the first use."""
        self._secret = secret
        self._directory = directory

    @classmethod
    def from_settings(cls, settings: ServeSettings) -> Idempotency:
        """Raises ChairliftError when the file that is set can't be used."""
        if settings.idempotency_secret_file:
            return cls(_read_secret(settings.idempotency_secret_file))
        return cls(None, Endpoints.parse(settings.address).directory)

    def response_id(self, endpoint: Endpoint, tenant: str, key: str) -> ResponseId:
        """Raises InvalidRequestError for a bad key, HttpError when there is no secret."""
        if not KEY.fullmatch(key):
            message = f"{HEADER} must have 1 to 255 visible ASCII characters, without spaces"
            raise InvalidRequestError(message, param=HEADER)
        named = f"{tenant}\0{key}".encode()
        base = hmac.digest(self._the_secret(), named, "sha256")[:16]
        return ResponseId(endpoint, base)

    def _the_secret(self) -> bytes:
        if self._secret is None:
            self._secret = self._common_secret()
        return self._secret

    def _common_secret(self) -> bytes:
        if self._directory is None:
            raise InvalidRequestError(
                f"{HEADER} is not served here: the server needs --idempotency-secret-file, the "
                "same for all frontends of the worker",
                param=HEADER,
                code="unsupported_parameter",
            )
        try:
            make_private_directory(self._directory)
            return _read_or_create(self._directory)
        except (OSError, ChairliftError) as error:
            log.error("no secret for idempotency keys", reason=str(error))
            message = f"{HEADER} can't be served now: its secret can't be read; leave it out"
            raise HttpError(500, message, code="idempotency_unavailable") from None


def body_digest(endpoint: Endpoint, asked: BaseModel) -> str:
    """Of the request as it was understood, so spelling and spaces don't count."""
    asks = asked.model_dump(exclude={"user"})  # on whose account makes no other answer
    body = orjson.dumps([endpoint, asks], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(body).hexdigest()


def key_reused() -> HttpError:
    message = f"this {HEADER} came with another body before: use a new key for a new request"
    return HttpError(409, message, code="idempotency_key_reused", headers=NO_RETRY)


def _read_secret(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            _check_is_private(path, os.fstat(file.fileno()))
            secret = file.read(MAX_SECRET_BYTES).strip()
    except OSError as error:
        raise ChairliftError(f"{path} can't be read: {error.strerror}") from None
    if len(secret) < SECRET_BYTES:
        raise ChairliftError(
            f"{path} holds {len(secret)} bytes, a secret needs {SECRET_BYTES}: try "
            "`openssl rand -hex 32`"
        )
    return secret


def _open_at_once(path: str, flags: int) -> int:
    """A FIFO would wait for somebody who writes."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_is_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ChairliftError(f"{path} is no file: a secret is read from a regular one")
    if status.st_uid not in (0, os.getuid()):
        raise ChairliftError(f"{path} belongs to somebody else: choose another")
    if status.st_mode & OPEN_TO_OTHERS:
        raise ChairliftError(f"{path} can be used by other users: chmod go= {path}")


def _read_or_create(directory: Path) -> bytes:
    """Whoever links first makes it; all read the whole of it or nothing."""
    path = directory / SECRET_NAME
    if not path.exists():
        draft = directory / f"{SECRET_NAME}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_hex(SECRET_BYTES).encode())
                file.flush()
                os.fsync(descriptor)
            os.link(draft, path)
        except FileExistsError:
            pass  # another was faster
        finally:
            draft.unlink()
    return _read_secret(path)
