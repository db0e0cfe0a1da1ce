"""The API inside another application, which has the server, the authentication and the log."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from starlette.types import ASGIApp, Receive, Scope, Send

from ...shared.errors import InvalidRequestError, WorkerUnavailableError
from ...shared.settings import ServeSettings
from ..client import AsyncClient
from ..mount import Limits, PartName, TenantOf
from .app import app_of, context_of
from .doors import host_door
from .gate import Gate
from .parts import PARTS
from .schema import DocumentedApp

MEETING_TIMEOUT_S = 2.0  # for a worker that is there


class MountSettings(ServeSettings):
    """What the host says in its code, and nothing else."""

    model_config = SettingsConfigDict(env_file=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **named_others: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @model_validator(mode="after")
    def _curve_suits_the_address(self) -> Self:
        """The client, which has the keys, has seen to that."""
        return self

    @classmethod
    def of(cls, address: str, limits: Limits) -> Self:
        """Raises InvalidRequestError, with the limit's name."""
        values: dict[str, Any] = {**limits}
        if "max_requests_per_tenant" in values:
            values["max_requests_per_key"] = values.pop("max_requests_per_tenant")
        try:
            return cls(address=address, **values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = str(first["loc"][0]).replace("_per_key", "_per_tenant")
            raise InvalidRequestError(f"{name}: {first['msg']}", param=name) from None


class Meeting:
    """Nobody runs the lifespan of what is mounted, so the first request opens the client, and each
    finds out whether it may be used here. If the worker does not answer, the routes say so."""

    def __init__(self, app: ASGIApp, client: AsyncClient) -> None:
        self._app = app
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with suppress(WorkerUnavailableError):
                await self._client.connect(MEETING_TIMEOUT_S)
        await self._app(scope, receive, send)


def mounted_app(
    client: AsyncClient, parts: Collection[PartName], tenant_of: TenantOf | None, limits: Limits
) -> DocumentedApp:
    """See `chairlift.asgi_app`, which has checked the names."""
    settings = MountSettings.of(client.address, limits)
    has_tenants = tenant_of is not None
    max_per_tenant = settings.max_requests_per_key if has_tenants else None
    context = context_of(client, settings, max_per_tenant, has_tenants=has_tenants)
    app = app_of(context, [part for name, part in PARTS.items() if name in parts])
    app.add_middleware(Meeting, client=client)
    app.add_middleware(
        Gate,
        door=host_door(tenant_of),
        places=context.places,
        metrics=context.metrics,
    )
    return app
