"""GET /watch: the running batch as server-sent events, step by step."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from msgspec.structs import asdict
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...shared.errors import InvalidRequestError
from ...shared.messages import Steps
from ...shared.steps import PHASES, Ended, StepRecord, split_hashes
from ..client import AsyncClient
from ..step_feed import StepFeed
from .answer_form import Json
from .context import Context
from .errors import HttpError
from .health import is_draining
from .receipts import receipt_json
from .schema import ERRORS
from .sending import STREAM_HEADERS, send_end, start, until_hung_up
from .spans import Span, unix_us

STATS_S = 1.0
MAX_WATCHERS = 32
MAX_OF_A_TENANT = 4  # where there are several
MAX_SPANS = 256  # that wait for a slow reader
NOTHING = Steps(0, [], [])  # from a client that was closed

# fmt: off
DOCUMENTATION: dict[str, Any] = {
    "responses": {
        **ERRORS,
        200: {"content": {"text/event-stream": {}}, "description": "Events, until you leave"},
    },
}
# fmt: on


def watch_router(context: Context) -> APIRouter:
    router = APIRouter()
    watchers: set[WatchAnswer] = set()

    @router.get("/watch", **DOCUMENTATION)
    async def watch(request: Request) -> Response:
        """See the batch move: what each step computed for which request, who waits, where the time
        went, and each request's receipt when it ends. docs/api.md has the events."""
        for name in request.query_params:
            message = f"unknown parameter {name[:40]}"
            raise InvalidRequestError(message, param=name[:40], code="unknown_parameter")
        return WatchAnswer(context, watchers)

    return router


class WatchAnswer(Response):
    """Sends the worker's steps to one reader until it leaves; one who is slow misses some."""

    def __init__(self, context: Context, watchers: set[WatchAnswer]) -> None:
        super().__init__()
        self._context = context
        self._watchers = watchers
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._stats_due = float("-inf")
        self._worker: Json | None = None  # as it was told
        self._tenant = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises HttpError, before anything is sent, when enough watch already."""
        self._tenant = scope["chairlift.caller"].tenant
        self._check_room()
        self._watchers.add(self)
        self._context.spans.listen(self._spans.append)
        tasks = [
            asyncio.create_task(until_hung_up(receive)),
            asyncio.create_task(self._send_events(scope["app"], send)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._context.spans.leave(self._spans.append)
            self._watchers.remove(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self) -> None:
        limit = MAX_OF_A_TENANT if self._context.has_tenants else MAX_WATCHERS
        own = [one for one in self._watchers if one._tenant == self._tenant]
        if len(own) >= limit or len(self._watchers) >= MAX_WATCHERS:
            message = f"{len(own)} of yours watch, {len(self._watchers)} in all: close one"
            raise HttpError(429, message, code="too_many_watchers")

    async def _send_events(self, app: FastAPI, send: Send) -> None:
        """Until the server drains; raises ClientDisconnect for a reader who takes nothing."""
        await start(send, STREAM_HEADERS)
        async with self._context.client.watch() as feed:
            while not (is_draining(app) or feed.is_closed):
                part = b"".join(await self._next_events(feed))
                try:
                    async with asyncio.timeout(self._context.settings.stall_timeout_s):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                except TimeoutError:
                    raise ClientDisconnect from None
        await send_end(send)

    async def _next_events(self, feed: StepFeed) -> list[bytes]:
        """At least one, within STATS_S."""
        events = []
        try:
            async with asyncio.timeout_at(self._stats_due):
                steps = await anext(feed, NOTHING)
            events += self._worker_event()
            events.append(_event("steps", [_step(record) for record in steps.records]))
            events.append(_event("ended", [self._end(ended) for ended in steps.ended]))
        except TimeoutError:
            self._stats_due = asyncio.get_running_loop().time() + STATS_S
            events += self._worker_event()
            events.append(_event("stats", _stats(self._context.client)))
        if self._spans:
            events.append(_event("requests", [_span(span) for span in self._spans]))
            self._spans.clear()
        return [event for event in events if event]

    def _end(self, ended: Ended) -> Json:
        request, tells_cached = ended.request.hex(), not self._context.has_tenants
        receipt = receipt_json(request, ended.receipt, tells_cached=tells_cached)
        return {"request": request, "reason": ended.reason, "receipt": receipt}

    def _worker_event(self) -> list[bytes]:
        """Before all else, and before the first news of another."""
        worker = _worker(self._context.client)
        if worker == self._worker:
            return []
        self._worker = worker
        return [_event("worker", worker)]


def _event(name: str, content: list[Json] | Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(content)) if content else b""


def _worker(client: AsyncClient) -> Json:
    worker = client.worker
    return {
        "model": worker.model if worker else None,
        "epoch": worker.epoch if worker else 0,
        "max_model_len": worker.max_model_len if worker else 0,
    }


def _stats(client: AsyncClient) -> Json:
    """Phases are missing as long as no worker was met."""
    stats = client.stats
    phases_us = dict(zip(PHASES, stats.phases_us, strict=False))
    by_name = {"phases_us": phases_us, "num_refused": dict(stats.num_refused)}
    return {"condition": client.condition, **asdict(stats), **by_name}


def _step(record: StepRecord) -> Json:
    return {
        "number": record.number,
        "began_us": record.began_us,
        "phases_us": dict(zip(PHASES, record.phases_us, strict=True)),
        "num_waiting": record.num_waiting,
        "waiting": split_hashes(record.waiting),
        "num_free_blocks": record.num_free_blocks,
        "num_shared_blocks": record.num_shared_blocks,
        "preempted": split_hashes(record.preempted),
        "rows": {"request": split_hashes(record.requests), **record.columns},
    }


def _span(span: Span) -> Json:
    first_token = span.first_token
    return {
        "requests": span.hashes,
        "endpoint": span.response_id.endpoint,
        "outcome": span.outcome,
        "began_us": unix_us(span.arrived),
        "submitted_us": unix_us(span.submitted),
        "first_token_us": None if first_token is None else unix_us(first_token),
        "ended_us": unix_us(span.ended),
    }
