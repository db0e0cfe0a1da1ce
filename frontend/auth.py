"""API keys: who is asking. Only their hashes are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hmac import compare_digest

from ..shared.errors import ChairliftError
from ..shared.settings import ServeSettings

ANONYMOUS = "anonymous"


class ApiKeys:
    """The keys that may ask; with none, everybody may and all are one tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = list(dict.fromkeys(hashlib.sha256(key.encode()).digest() for key in keys))

    @classmethod
    def from_settings(cls, settings: ServeSettings) -> ApiKeys:
        """Raises ChairliftError when keys were meant to be there and none is."""
        keys = [key.get_secret_value() for key in settings.api_keys or ()]
        if settings.api_keys is not None and not keys:
            raise ChairliftError("CHAIRLIFT_API_KEYS is set and holds no API key")
        if settings.api_key_file:
            try:
                lines = settings.api_key_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ChairliftError(f"{settings.api_key_file} can't be read: {error}") from None
            stripped = [line.strip() for line in lines]
            found = [line for line in stripped if line and not line.startswith("#")]
            if not found:
                raise ChairliftError(f"{settings.api_key_file} holds no API key")
            keys += found
        return cls(keys)

    def __len__(self) -> int:
        return len(self._digests)

    def tenant_of(self, authorization: bytes) -> str | None:
        """A short hash of the key in an Authorization header; None when it is not one of ours.

        Takes the same time wherever and whether keys match.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return None
        return given.hex()[:8]
