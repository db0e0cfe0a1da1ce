"""The generating routes' answers: whole, or as server-sent events.

Chunks are plain dicts on purpose: a thousand a second pass here.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Protocol

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...shared.messages import Greeting
from .context import Context
from .errors import answer_for, request_id_of, shutting_down
from .generation import Event, Failure, Generation, HungUp, Pause, Progress
from .generation_request import Choice, GenerationRequest

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}

Json = dict[str, Any]


class Shape(Protocol):
    """What tells the two routes' answers apart."""

    object: str
    chunk_object: str
    head: Json

    def openings(self, index: int) -> list[Json]:
        """Choices of the chunks that begin a stream."""
        ...

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        """Choices of the chunks for some text, its end, or both."""
        ...

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        """A choice of an answer that is no stream."""
        ...


class CompletionShape:
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, greeting: Greeting) -> None:
        self.head = _head("cmpl-", greeting)

    def openings(self, index: int) -> list[Json]:
        return []

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return [choice] if text or finish_reason else []

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


class ChatShape:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, greeting: Greeting) -> None:
        self.head = _head("chatcmpl-", greeting)

    def openings(self, index: int) -> list[Json]:
        return [_delta(index, {"role": "assistant", "content": ""})]

    def parts(self, index: int, text: str, finish_reason: str | None) -> list[Json]:
        content = [_delta(index, {"content": text})] if text else []
        return [*content, _delta(index, {}, finish_reason)] if finish_reason else content

    def whole(self, index: int, text: str, finish_reason: str) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
        }


def _head(prefix: str, greeting: Greeting) -> Json:
    """What every chunk of one answer repeats."""
    served = (
        f"{version('chairlift')} {greeting.model} {greeting.max_model_len} "
        f"{greeting.tokenizer.hex()} {greeting.chat_template.hex()}"
    )
    return {
        "id": prefix + secrets.token_hex(12),
        "object": "",
        "created": int(time.time()),
        "model": greeting.model,
        "system_fingerprint": "fp_" + hashlib.sha256(served.encode()).hexdigest()[:10],
    }


def _delta(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class Usage:
    """Counts tokens: a prompt once however many choices it has, all that was generated."""

    def __init__(self, choices: Iterable[Choice], n: int, *, tells_cached: bool) -> None:
        self._n = n
        self._tells_cached = tells_cached
        self._prompt = sum(len(c.prompt_token_ids) for c in choices if c.index % n == 0)
        self._completion = 0
        self._cached = 0

    def add(self, progress: Progress) -> None:
        self._completion += len(progress.delta.token_ids)
        if progress.delta.finish and progress.index % self._n == 0:
            self._cached += progress.delta.finish.num_cached_tokens

    def as_json(self) -> Json:
        usage: Json = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
        }
        if self._tells_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self._cached}
        return usage


class GenerationResponse(Response):
    """Generates while it is being sent, and not a step longer than somebody listens."""

    def __init__(
        self, context: Context, asked: GenerationRequest, choices: list[Choice], shape: Shape
    ) -> None:
        super().__init__()
        self._context = context
        self._asked = asked
        self._choices = choices
        self._shape = shape
        self._usage = Usage(choices, asked.n, tells_cached=not context.has_tenants)
        self._num_unfinished = len(choices)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises, before anything is sent, what the worker or the limits refuse."""
        context = self._context
        send = _impatient(send, context.settings.stall_timeout_s)
        tenant = scope["chairlift.caller"].tenant
        pause_s = context.settings.keep_alive_s
        generation = Generation(context.client, self._choices, context.metrics, pause_s)
        more = len(self._choices) - 1  # than the one that the gate holds
        with context.admission.hold(tenant, more, num_held=1):
            async with generation:
                generation.watch(receive)
                if self._asked.stream:
                    await self._stream(generation, send, request_id_of(scope))
                else:
                    await self._whole(generation, send)

    async def _whole(self, generation: Generation, send: Send) -> None:
        texts = {choice.index: "" for choice in self._choices}
        reasons: dict[int, str] = {}
        while self._num_unfinished:
            for event in await generation.next_events():
                match event:
                    case Progress(index, delta):
                        self._count(event)
                        texts[index] += delta.text
                        if delta.finish:
                            reasons[index] = delta.finish.reason
                    case Failure(error):
                        raise error
                    case HungUp():
                        return
        choices = [self._shape.whole(index, texts[index], reasons[index]) for index in texts]
        head = {**self._shape.head, "object": self._shape.object}
        body = orjson.dumps({**head, "choices": choices, "usage": self._usage.as_json()})
        await _start(send, {"content-type": "application/json"}, len(body))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, generation: Generation, send: Send, request_id: str) -> None:
        events = await generation.next_events()  # a refusal still becomes a status
        for event in events:
            if isinstance(event, Failure):
                raise event.error
        if generation.is_abandoned:
            return
        await _start(send, STREAM_HEADERS)
        openings = [o for c in self._choices for o in self._shape.openings(c.index)]
        try:
            await _send_part(send, b"".join(map(self._chunk, openings)))
            while True:
                await _send_part(send, self._encode(events, request_id))
                if not self._num_unfinished:
                    break
                events = await generation.next_events()
                if generation.is_abandoned:
                    return
        except asyncio.CancelledError:  # a clear word before the server cuts the connection
            await _send_part(send, _error_event(shutting_down(), request_id))
            await _send_end(send)
            raise
        await _send_end(send)

    def _encode(self, events: list[Event], request_id: str) -> bytes:
        """The server-sent events for what happened, the ending of the stream included."""
        parts: list[bytes] = []
        for event in events:
            match event:
                case Progress(index, delta):
                    self._count(event)
                    reason = delta.finish.reason if delta.finish else None
                    parts += map(self._chunk, self._shape.parts(index, delta.text, reason))
                case Pause():
                    parts.append(KEEP_ALIVE)
                case Failure(error):
                    self._num_unfinished = 0
                    return b"".join([*parts, _error_event(error, request_id)])
        if not self._num_unfinished:
            parts.append(self._ending())
        return b"".join(parts)

    def _count(self, progress: Progress) -> None:
        self._usage.add(progress)
        if progress.delta.finish:
            self._num_unfinished -= 1

    def _chunk(self, choice: Json) -> bytes:
        return self._event([choice], None)

    def _event(self, choices: list[Json], usage: Json | None) -> bytes:
        chunk = {**self._shape.head, "object": self._shape.chunk_object, "choices": choices}
        if self._asked.has_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _ending(self) -> bytes:
        if self._asked.has_usage:
            return self._event([], self._usage.as_json()) + DONE
        return DONE


def _error_event(error: Exception, request_id: str) -> bytes:
    return b"data: " + answer_for(error, request_id).body + b"\n\n"


async def _start(send: Send, headers: dict[str, str], length: int | None = None) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": pairs})


async def _send_part(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b""})


def _impatient(send: Send, stall_timeout_s: float) -> Send:
    """A `send` that gives up on a reader who takes nothing: it holds its place, its answer and
    the places of others. Raises ClientDisconnect; the server then cuts the connection."""

    async def send_or_give_up(message: Message) -> None:
        try:
            async with asyncio.timeout(stall_timeout_s):
                await send(message)
        except TimeoutError:
            raise ClientDisconnect from None

    return send_or_give_up
