"""The OpenAI API at /llm/v1, behind the host's own authentication: uvicorn mounted:app"""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

import chairlift

USERS = {"Bearer zoe-secret": "zoe", "Bearer max-secret": "max"}  # or your sessions, your tokens


class Tokens(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = USERS.get(conn.headers.get("authorization", ""))
        return (AuthCredentials(), SimpleUser(name)) if name else None


def tenant_of(scope: MutableMapping[str, Any]) -> str | None:
    return scope["user"].display_name if scope["user"].is_authenticated else None


llm = chairlift.asgi_app(tenant_of=tenant_of, max_requests_per_tenant=8)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with llm.client:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(AuthenticationMiddleware, backend=Tokens())
app.mount("/llm", llm)
