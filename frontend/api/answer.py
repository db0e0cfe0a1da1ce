"""The generating routes' answers: whole, or as server-sent events, and streams continued."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...shared.errors import InvalidRequestError, WorkerUnavailableError
from ...shared.tokenizer import Tokenizer
from ..results import Delta
from .context import Context
from .errors import request_id_of, shutting_down
from .event_stream import KEEP_ALIVE, queue_comment
from .gate import Caller
from .generation import Event, Failed, Generation, HungUp, Pause, Progress
from .opening import Attachment, Submission
from .position import Position
from .sending import JSON_HEADERS, STREAM_HEADERS, ImpatientSend, send_end, start
from .spans import Span
from .writers import StreamWriter, stream_writer, whole_writer

THREAD_TOKENS = 500  # telling more than these at once would hold up other streams


class _Answer(Response):
    """Written by a task of its own: resumed through all coroutines of the middleware, each token
    would cost 2 µs more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class GeneratedAnswer(_Answer):
    """Generates while it is being sent, and not a step longer than somebody listens or may."""

    def __init__(self, context: Context, submission: Submission) -> None:
        super().__init__()
        self._context = context
        self._submission = submission

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises, before anything is sent, what the worker or the limits refuse."""
        context = self._context
        send = ImpatientSend(scope, send, context.settings.stall_timeout_s)
        caller = scope["chairlift.caller"]
        more = len(self._submission.choices) - 1  # than the one that the gate holds
        with context.places.hold(caller.tenant, more, num_held=1):
            span = _span_of(self._submission, caller)
            opened = self._submission.open(context.client)
            tokenizer, request_id = self._submission.tokenizer, caller.request_id
            async with Generation(opened, context, span) as generation:
                generation.watch(receive, send)
                if self._submission.is_stream:
                    await _send_stream(generation, send, tokenizer, request_id)
                else:
                    await _send_whole(generation, send, tokenizer)
                await generation.outlast(context.orphan_grace_s)


class ContinuedAnswer(_Answer):
    """Sends the rest of a stream that was asked for before, here or on another frontend."""

    def __init__(self, context: Context, attachment: Attachment) -> None:
        super().__init__()
        self._context = context
        self._attachment = attachment

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises, before anything is sent, what `Attachment.open` and the limits refuse."""
        context, attachment = self._context, self._attachment
        if context.client.worker is None:
            raise WorkerUnavailableError("the worker is starting: try again soon")
        send = ImpatientSend(scope, send, context.settings.stall_timeout_s)
        tenant = scope["chairlift.caller"].tenant
        hold = partial(context.places.hold, tenant, is_takeover=attachment.takes_over)
        with hold(1):
            opened = await attachment.open(context.client)
            tokenizer, request_id = context.client.tokenizer, request_id_of(scope)
            async with Generation(opened, context) as generation:
                generation.watch(receive, send)
                with hold(opened.form.num_choices - 1, num_held=1):
                    await _send_stream(generation, send, tokenizer, request_id, attachment.after)
                    await generation.outlast(context.orphan_grace_s)


def _span_of(submission: Submission, caller: Caller) -> Span:
    """Begun before the worker is asked: its times, counted from here, lie within ours."""
    return Span(
        caller.request_id,
        submission.response_id,
        submission.form.num_choices,
        submission.form.model,
        caller.arrived,
        caller.traceparent,
        submitted=time.monotonic(),
    )


async def _send_whole(generation: Generation, send: Send, tokenizer: Tokenizer) -> None:
    events = await generation.first_events()
    form = generation.form
    answer = whole_writer(generation.opened, form, tokenizer)
    while True:
        for event in events:
            match event:
                case Progress(index, delta):
                    answer.take(index, delta)
                case Failed(error):
                    raise error
                case HungUp():
                    return
        if answer.is_complete:
            break
        events = await generation.next_events()
    is_long = form.tells_tokens and answer.num_tokens > THREAD_TOKENS
    body = await asyncio.to_thread(answer.body) if is_long else answer.body()
    await start(send, JSON_HEADERS, len(body))
    await send_end(send, body)


async def _send_stream(
    generation: Generation,
    send: ImpatientSend,
    tokenizer: Tokenizer,
    request_id: str,
    after: Position | None = None,
) -> None:
    events = await generation.first_events()  # a refusal still becomes a status
    if generation.is_abandoned:
        return
    opened = generation.opened
    stream = stream_writer(opened, generation.form, tokenizer, after)
    missing = set(range(generation.form.num_choices)) - opened.streams.keys()
    written = stream.openings() + b"".join(map(stream.leave_out, sorted(missing)))
    written += _encode(stream, events, request_id)
    while stream.is_behind and not any(isinstance(event, Pause) for event in events):
        events = await generation.first_events()  # a position that proves wrong becomes one, too
        if generation.is_abandoned:
            return
        written += _encode(stream, events, request_id)
    await start(send, STREAM_HEADERS)
    try:
        await send.send_part(written)
        passage = _Passage(stream, send)
        while not stream.is_complete:
            events = await generation.next_events(passage)
            if generation.is_abandoned:
                return
            await send.send_part(_encode(stream, events, request_id))
    except InvalidRequestError as refusal:  # too late for a status
        await send.send_part(stream.fail(refusal, request_id))
    except asyncio.CancelledError:  # a clear word before the server cuts the connection
        error = shutting_down(f"continue at /v1/streams/{opened.response_id} with Last-Event-ID")
        await send.send_part(stream.fail(error, request_id))
        await send_end(send)
        raise
    await send_end(send)


class _Passage:
    """From a token stream into the server's buffer in one go."""

    def __init__(self, stream: StreamWriter, send: ImpatientSend) -> None:
        self.is_free: Callable[[], bool] = partial(send.put, b"")
        self._put, self._stream = send.put, stream

    def pass_on(self, index: int, delta: Delta) -> None:
        self._put(_written(self._stream, index, delta))


def _written(stream: StreamWriter, index: int, delta: Delta) -> bytes:
    if delta.queue is not None:
        return queue_comment(index, delta.queue)
    return stream.write(index, delta)


def _encode(stream: StreamWriter, events: list[Event], request_id: str) -> bytes:
    """The server-sent events for what happened, the ending of the stream included."""
    parts: list[bytes] = []
    for event in events:
        match event:
            case Progress(index, delta):
                parts.append(_written(stream, index, delta))
            case Pause():
                parts.append(KEEP_ALIVE)
            case Failed(error):
                parts.append(stream.fail(error, request_id))
                break
    return b"".join(parts)
