"""What the routes of one app share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from ...shared.errors import WorkerUnavailableError
from ...shared.messages import MAX_TENANT_BYTES, Greeting
from ...shared.settings import ServeSettings
from ...shared.tokenizer import Tokenizer
from ..client import AsyncClient
from .errors import HttpError
from .idempotency import Idempotency
from .metrics import Metrics
from .places import Places
from .spans import Spans

T = TypeVar("T")
Args = TypeVarTuple("Args")

THREAD_CHARACTERS = 16_000  # tokenising more than this would hold up other streams


@dataclass(frozen=True, slots=True)
class Context:
    """One per app; the routes have no other state."""

    client: AsyncClient
    settings: ServeSettings
    metrics: Metrics
    places: Places
    idempotency: Idempotency
    spans: Spans
    has_tenants: bool  # several who ask: what is cached for one is no other's business

    @property
    def orphan_grace_s(self) -> float:
        """How long the worker keeps what nobody reads."""
        return self.client.worker.orphan_grace_ms / 1000 if self.client.worker else 0.0

    def cache_salt(self, tenant: str, given: str | None) -> bytes:
        """Prefixes are shared by those with equal salts only; a tenant's are no other's."""
        if given is None and not self.settings.isolate_prefix_cache:
            return b""
        return hashlib.sha256(f"{tenant}\0{given or ''}".encode()).digest()

    def worker_tenant(self, tenant: str, user: str | None) -> bytes:
        """Among whom the worker shares its time: API keys where there are several, else users."""
        named = f"key\0{tenant}" if self.has_tenants else f"user\0{user}" if user else ""
        return hashlib.sha256(named.encode()).digest()[:MAX_TENANT_BYTES] if named else b""

    def served(self, model: str | None) -> Served:
        """Raises as `greeting`."""
        greeting = self.greeting(model)
        return Served(self, greeting, self.client.tokenizer)

    def greeting(self, model: str | None) -> Greeting:
        """The worker that serves `model`, or any when None.

        Raises WorkerUnavailableError, or HttpError for another model.
        """
        state = self.client.condition
        greeting = self.client.worker
        if greeting is None or state != "ok":
            raise WorkerUnavailableError(f"the worker is {state}: try again soon")
        if model not in (None, greeting.model):
            raise unknown_model(str(model), greeting)
        return greeting


@dataclass(frozen=True, slots=True)
class Served:
    """A worker's model, as it was when a request came: tokenised by one and asked of another, it
    would be nonsense."""

    context: Context
    greeting: Greeting
    tokenizer: Tokenizer


def unknown_model(model: str, greeting: Greeting) -> HttpError:
    message = f"model {model[:256]!r} is not served here, {greeting.model!r} is"
    return HttpError(404, message, code="model_not_found")


async def in_thread_if(is_long: bool, work: Callable[[*Args], T], *args: *Args) -> T:
    """What `work` returns; what is long would hold up other streams."""
    return await asyncio.to_thread(work, *args) if is_long else work(*args)
