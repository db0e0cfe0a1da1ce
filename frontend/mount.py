"""The OpenAI API as a part of somebody else's application. What it is made of is imported at the
call: the base install has no HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from ..shared.errors import ChairliftError, InvalidRequestError
from .client import AsyncClient

if TYPE_CHECKING:
    from .api.schema import DocumentedApp

PartName = Literal[
    "completions",
    "chat",
    "responses",
    "streams",
    "embeddings",
    "tokenize",
    "models",
    "watch",
    "health",
    "metrics",
    "page",
]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)
SHOWS_THE_BATCH: tuple[PartName, ...] = ("watch", "page")  # everybody's requests
DEFAULT_PARTS: tuple[PartName, ...] = tuple(n for n in PART_NAMES if n not in SHOWS_THE_BATCH)
TenantOf = Callable[[MutableMapping[str, Any]], str | Awaitable[str | None] | None]


class Limits(TypedDict, total=False):
    """As the settings of `chairlift serve`; a tenant is there who has an API key here."""

    max_requests: int
    max_requests_per_tenant: int
    max_body_bytes: int
    max_buffer_bytes: int
    body_timeout_s: float
    request_timeout_s: float
    keep_alive_s: float
    stall_timeout_s: float
    best_priority: int
    isolate_prefix_cache: bool
    idempotency_secret_file: str | Path
    tool_format: str


def asgi_app(
    client: AsyncClient | None = None,
    *,
    parts: Collection[PartName] = DEFAULT_PARTS,
    tenant_of: TenantOf | None = None,
    **limits: Unpack[Limits],
) -> DocumentedApp:
    """The OpenAI API, or `parts` of it, to be mounted in an ASGI application. "watch" and "page"
    are parts as well, which show everybody's requests: they have to be asked for.

        from fastapi import FastAPI

        app = FastAPI()
        app.mount("/llm", chairlift.asgi_app(parts=("chat", "completions", "models")))

    The official client then has the base_url http://host/llm/v1. A `client` is made if none is
    given; it is the app's `client`, meets the worker at the first request, and may be closed when
    the host ends.

    Who gets here may ask, as one tenant, unless there is `tenant_of`: from the ASGI scope, in
    which the host's middleware has left what it knows, it tells the tenant, or None for a 401. By
    tenants go the fair share of the worker, Idempotency-Keys, `max_requests_per_tenant` and, with
    `isolate_prefix_cache`, what is cached. It may be a coroutine function.

        def tenant_of(scope):
            return scope["user"].display_name if scope["user"].is_authenticated else None

        llm = chairlift.asgi_app(tenant_of=tenant_of, max_requests_per_tenant=8)

    Neither the environment nor a `.env` is read. Raises InvalidRequestError for an unknown part or
    a limit that can't be, ChairliftError without chairlift[server].
    """
    _check_names("parts", parts, PART_NAMES)
    _check_names("limits", limits, Limits.__annotations__)
    if "max_requests_per_tenant" in limits and tenant_of is None:
        message = "max_requests_per_tenant goes with tenant_of: without it all are one tenant"
        raise InvalidRequestError(message, param="max_requests_per_tenant")
    try:
        from .api.mounted import mounted_app
    except ModuleNotFoundError as error:
        raise ChairliftError(
            f"asgi_app needs {error.name}: pip install 'chairlift[server]'"
        ) from None
    return mounted_app(client or AsyncClient(), parts, tenant_of, limits)


def _check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    """A text is a collection, too: of letters."""
    for name in [given] if isinstance(given, str) else given:
        if name not in known:
            message = f"{what} of asgi_app: there is no {name!r}, but {', '.join(known)}"
            raise InvalidRequestError(message, param=what, code="unknown_parameter")
    if isinstance(given, str):
        raise InvalidRequestError(f"{what} of asgi_app: make {given!r} a tuple", param=what)
