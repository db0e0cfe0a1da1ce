"""Who may ask, and as which tenant: told from a request's scope, or refused with a 401."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import Scope

from ..auth import ANONYMOUS, ApiKeys
from ..mount import TenantOf
from .errors import HttpError

HOST = "host:"  # before its tenants: none of them is one of ours
Door = Callable[[Scope], Awaitable[str]]  # the tenant; raises HttpError


def key_door(keys: ApiKeys) -> Door:
    """For who has one of the keys, if there are any."""

    async def enter(scope: Scope) -> str:
        authorization = Headers(scope=scope).get("authorization", "").encode("latin-1")
        tenant = keys.tenant_of(authorization)
        if tenant is None:
            raise _unknown_key(bool(authorization))
        return tenant

    return enter


def host_door(tenant_of: TenantOf | None) -> Door:
    """For whom the application around us lets in; without a word on tenants all are one."""

    async def enter(scope: Scope) -> str:
        if tenant_of is None:
            return ANONYMOUS
        found = tenant_of(scope)
        tenant = await found if inspect.isawaitable(found) else found
        if tenant is None or tenant == "":  # as Starlette names who has not logged in
            message = "this application does not know who asks: authenticate as it wants it"
            raise HttpError(401, message, code="unauthenticated")
        if not isinstance(tenant, str):
            raise TypeError(f"tenant_of must give a str or None, not {type(tenant).__name__}")
        return HOST + tenant

    return enter


def _unknown_key(has_key: bool) -> HttpError:
    message = "this API key is not known here" if has_key else "send Authorization: Bearer KEY"
    headers = {"WWW-Authenticate": "Bearer"}
    return HttpError(401, message, code="invalid_api_key", headers=headers)
