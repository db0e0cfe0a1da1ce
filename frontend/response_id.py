"""The id of an HTTP answer, and the ids of its generations at the worker."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

from ..shared.errors import StreamNotFoundError
from ..shared.sampling_params import MAX_SEED

Endpoint = Literal["completions", "chat", "responses"]
PREFIXES: dict[Endpoint, str] = {"completions": "cmpl-", "chat": "chatcmpl-", "responses": "resp_"}
ENDPOINTS: dict[str, Endpoint] = {prefix: endpoint for endpoint, prefix in PREFIXES.items()}
SHAPE = re.compile(rf"({'|'.join(ENDPOINTS)})([0-9a-f]{{32}})")


@dataclass(frozen=True, slots=True)
class ResponseId:
    """Who knows it may read the answer, so no log and no figure shows it."""

    endpoint: Endpoint
    base: bytes = field(repr=False)  # 16 bytes; the first choice's request id

    @classmethod
    def draw(cls, endpoint: Endpoint) -> ResponseId:
        return cls(endpoint, secrets.token_bytes(16))

    @classmethod
    def parse(cls, text: str) -> ResponseId:
        """Raises StreamNotFoundError: what is no id names no stream."""
        match = SHAPE.fullmatch(text)
        if match is None:
            raise StreamNotFoundError("this is no id of an answer: they look like chatcmpl-1a2b…")
        return cls(ENDPOINTS[match[1]], bytes.fromhex(match[2]))

    def __str__(self) -> str:
        return PREFIXES[self.endpoint] + self.base.hex()

    def of_choice(self, index: int) -> bytes:
        """The request id of one choice's generation."""
        if index == 0:
            return self.base
        return hashlib.sha256(self.base + index.to_bytes(4, "big")).digest()[:16]

    @property
    def seed(self) -> int:
        """For a request that names none: the same whenever the request is asked again."""
        return int.from_bytes(hashlib.sha256(self.base + b"seed of it").digest()[:8]) & MAX_SEED
