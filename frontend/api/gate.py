"""What every request passes first: its id, the door, its place among those in flight."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...shared.errors import ChairliftError
from ...shared.logs import HostLog
from .doors import Door
from .errors import answer_for, request_id_of, shutting_down
from .metrics import Metrics
from .page import PAGE_PATHS
from .places import Places

OPEN_PATHS = PAGE_PATHS | {"/health", "/ready"}
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
QUIET_PATHS = OPEN_PATHS | {"/metrics"}
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

log = HostLog("chairlift.http")


@dataclass(slots=True)
class Caller:
    """Who asks, and under which id we answer."""

    request_id: str
    tenant: str
    arrived: float  # in seconds of the monotonic clock
    traceparent: str  # of W3C's Trace Context, if one came


class Gate:
    """Pure ASGI middleware: streams and disconnects pass untouched. Denies by default."""

    def __init__(self, app: ASGIApp, door: Door, places: Places, metrics: Metrics) -> None:
        self._app = app
        self._door = door
        self._places = places
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        caller = Caller(_request_id(scope), "", start, Headers(scope=scope).get("traceparent", ""))
        scope["chairlift.caller"] = caller
        recorder = _Recorder(send, caller.request_id)
        try:
            await self._enter(scope, receive, recorder)
        except ClientDisconnect:
            pass
        except Exception as error:
            if not isinstance(error, ChairliftError):
                log.exception("request failed", request_id=caller.request_id)
            if recorder.status is None:
                await self._refuse(error, scope, receive, recorder)
        except asyncio.CancelledError:  # the server's time to shut down is over; not news to it
            if recorder.status is None:
                await self._refuse(shutting_down(), scope, receive, recorder)
        finally:
            self._record(scope, recorder.status or 499, caller, time.monotonic() - start)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope["chairlift.caller"]
        if _own_path(scope) not in OPEN_PATHS:
            caller.tenant = await self._door(scope)
        is_counted = scope["method"] == "POST"
        with self._places.hold(caller.tenant, 1) if is_counted else nullcontext():
            await self._app(scope, receive, send)

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        answer = answer_for(error, request_id_of(scope))
        self._metrics.refused(answer.code or answer.type)
        await answer.response()(scope, receive, send)

    def _record(self, scope: Scope, status: int, caller: Caller, duration_s: float) -> None:
        """499 is nginx's way to say that the caller left."""
        route = getattr(scope.get("route"), "path", "unknown")
        is_known = route != "unknown" and scope["method"] in METHODS
        method = scope["method"] if is_known else "other"  # a stranger must not name our series
        self._metrics.answered(method, route, status)
        say = log.debug if route in QUIET_PATHS else log.info
        say(
            "request",
            method=method,
            route=route,
            status=status,
            ms=round(duration_s * 1000, 1),
            request_id=caller.request_id,
            tenant=caller.tenant,
        )


class _Recorder:
    """A `send` that adds the request id and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """The caller's own when it can be put into a header and a log as it is."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SANE_REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(12)


def _own_path(scope: Scope) -> str:
    """Without the prefix that we are mounted under."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path[len(prefix) :] if path.startswith(prefix + "/") else path
