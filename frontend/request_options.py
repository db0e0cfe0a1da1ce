"""How a request is delivered, apart from what it asks of the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.errors import InvalidRequestError
from ..shared.messages import (
    MAX_CONTEXT_BYTES,
    MAX_SALT_BYTES,
    MAX_TENANT_BYTES,
    MAX_TTL_MS,
    Pooling,
)

DEFAULT_TTL_S = 600.0


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """`request_id` (16 bytes) is drawn when None; one that runs already is joined instead.

    `context` (at most 16384 bytes) is handed to whoever attaches later. What `is_resumable` is kept
    by the worker for a grace after its owner has gone, finished or not. Cached prefixes are shared
    under equal `cache_salt`s (at most 32 bytes). After `ttl_s` the request ends unfinished; None
    waits for as long as it takes. Of the waiting, those with a lower `priority` (-100 to 100) go
    first, and the worker's time is shared among `tenant`s (at most 16 bytes; without, the client is
    one). `pooling`, `last` or `mean`, asks for an embedding instead of tokens. `tokenizer` is the
    fingerprint of the one that made the token ids; by default the worker's as it is now. With
    `wants_queue_news` there are Deltas with a `queue` as long as the request waits to begin: at
    once, then at most once a second, when it has changed.
    """

    request_id: bytes | None = None
    context: bytes = b""
    is_resumable: bool = False
    cache_salt: bytes = b""
    ttl_s: float | None = DEFAULT_TTL_S
    priority: int = 0
    pooling: Pooling = ""
    tokenizer: bytes = b""
    tenant: bytes = b""
    wants_queue_news: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what can't be sent."""
        if self.request_id is not None and len(self.request_id) != 16:
            raise InvalidRequestError("a request id has 16 bytes", param="request_id")
        if len(self.context) > MAX_CONTEXT_BYTES:
            message = f"a context has at most {MAX_CONTEXT_BYTES} bytes"
            raise InvalidRequestError(message, param="context")
        if len(self.cache_salt) > MAX_SALT_BYTES:
            message = f"a cache salt has at most {MAX_SALT_BYTES} bytes"
            raise InvalidRequestError(message, param="cache_salt")
        if len(self.tenant) > MAX_TENANT_BYTES:
            message = f"a tenant has at most {MAX_TENANT_BYTES} bytes"
            raise InvalidRequestError(message, param="tenant")
        if not -100 <= self.priority <= 100:
            raise InvalidRequestError("priority is from -100 to 100", param="priority")
        if self.ttl_s is not None and not 0 < self.ttl_s <= MAX_TTL_MS / 1000:
            message = f"ttl_s is more than 0 and at most {MAX_TTL_MS // 1000}"
            raise InvalidRequestError(message, param="ttl_s")
