"""A frontend's side of the protocol. Sans-IO: bytes and clock in, bytes and events out.

It keeps of every unfinished request what is needed to ask for it again: after a lost message the
worker is told what is held here, after a restart the requests are submitted anew with the tokens
that they have, and the streams go on where they were.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from ..shared.codec import decode_reply, encode
from ..shared.errors import RequestIdConflictError
from ..shared.finishes import NOT_FOUND, OUT_OF_TIME
from ..shared.logprobs import TokenLogprob, unpack_logprobs
from ..shared.messages import (
    Attach,
    Cancel,
    Detach,
    Extras,
    Finish,
    Frame,
    Greeting,
    Pooling,
    Row,
    Steps,
    Submit,
    Sync,
    TokenizerFiles,
    Watch,
    WorkerState,
    WorkerStats,
    pack_live,
    pack_token_ids,
    split_ids,
    unpack_token_ids,
)
from ..shared.queue_place import QueuePlace
from ..shared.sampling_params import SamplingParams
from ..shared.steps import Receipt
from .request_options import RequestOptions

SYNC_INTERVAL_S = 1.0
GAP_SYNC_INTERVAL_S = 0.02
ACKNOWLEDGE_EVERY = 100  # frames
REATTACH_PATIENCE_S = 10.0  # after a restart, until a request's owner has submitted it again
MAX_SPARE_MESSAGES = 16
DEADLINE_MARGIN_S = 1.0  # left to the worker, whose word it is


class Output(Struct, frozen=True, gc=False):
    """News of one request: what was not known before, in order, exactly once."""

    request_id: bytes
    token_ids: list[int]
    text: str
    finish: Finish | None = None
    logprobs: list[TokenLogprob] = []  # of the tokens, if wanted
    prompt_logprobs: list[TokenLogprob] = []  # with the first
    embedding: bytes = b""  # float32, little-endian; with the last
    queue: QueuePlace | None = None  # instead of all else, as long as it waits
    receipt: Receipt | None = None  # with the last, of what ran


@dataclass(frozen=True, slots=True)
class Opened:
    """The request runs at the worker already; comes before its first Output."""

    request_id: bytes
    context: bytes
    prompt_token_ids: list[int]


News = Greeting | TokenizerFiles | Opened | Output | Steps


@dataclass(slots=True)
class _Request:
    """What is needed to ask for the request again, and all of it that was received.

    It is submitted, unless there is an Attach: then it is another's.
    """

    submit: Submit | None  # as it was submitted, by us or as we were told
    attach: Attach | None = None
    is_owner: bool = False  # as far as we were told
    deadline: float = float("inf")
    patient_until: float = 0.0  # after a restart its owner has to submit it again first
    output_token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    text_length: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    queue: QueuePlace | None = None  # as it was told last

    @property
    def is_attaching(self) -> bool:
        """Whether there was no answer yet."""
        return self.attach is not None and (self.submit is None or self.attach.takes_over)

    def with_extras(self, output: Output, extras: Extras, num_known: int) -> Output:
        """The output with what else came of its tokens; of its row's first `num_known` it was
        known before."""
        assert self.submit is not None, "only of a known request"
        params, prompt_logprobs = self.submit.params, []
        logprobs = unpack_logprobs(extras.logprobs, max(params.num_logprobs, 0))[num_known:]
        self.logprobs += logprobs
        if not self.prompt_logprobs:
            num_top = max(params.num_prompt_logprobs, 0)
            prompt_logprobs = unpack_logprobs(extras.prompt_logprobs, num_top)
            self.prompt_logprobs = prompt_logprobs
        return replace(
            output,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            embedding=extras.embedding,
            receipt=extras.receipt,
        )

    def is_patient(self, now: float) -> bool:
        """Whether the worker is too young to know the request."""
        return self.attach is not None and now < self.patient_until


class FrontendProtocol:
    """Owns the unfinished requests of one frontend.

    `outgoing` holds the messages to send, in order; the caller pops those that were taken. A
    request leaves with its one final Output, or with `cancel` or `detach`.
    """

    def __init__(self, frontend_id: bytes, now: float) -> None:
        self.frontend_id = frontend_id
        self.outgoing: deque[bytes] = deque()
        self.greeting: Greeting | None = None
        self.state: WorkerState = "ready"
        self.stats = WorkerStats()
        self.last_heard = now
        self.wants_tokenizer = False
        self.wants_steps = False
        self._requests: dict[bytes, _Request] = {}
        self._farewells: dict[bytes, bytes] = {}  # said twice, since nobody answers to them
        self._former_epochs: set[int] = set()
        self._num_attempts = 0
        self._frame_number = 0
        self._acknowledged = 0
        self._last_sync = float("-inf")
        self._last_watch = float("-inf")
        self._has_gap = False
        self._has_finished = False  # something that the worker still keeps for us

    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions,
        now: float,
    ) -> None:
        """Only after the greeting: it tells which tokenizer the ids must come from."""
        assert self.greeting is not None, "nothing is sent before the greeting"
        assert options.request_id is not None, "the caller draws it"
        submit = Submit(
            frontend_id=self.frontend_id,
            request_id=options.request_id,
            tokenizer=options.tokenizer or self.greeting.tokenizer,
            prompt_token_ids=pack_token_ids(prompt_token_ids),
            output_token_ids=b"",
            params=params,
            is_resumable=options.is_resumable,
            context=options.context,
            cache_salt=options.cache_salt,
            priority=options.priority,
            pooling=options.pooling,
            tenant=options.tenant,
            wants_queue_news=options.wants_queue_news,
        )
        deadline = now + options.ttl_s if options.ttl_s else float("inf")
        self._open(submit.request_id, _Request(submit, None, True, deadline), now)

    def attach(self, request_id: bytes, now: float, *, takes_over: bool) -> None:
        """Reads a request from its first output token on; it is not one of ours."""
        attach = self._attach(request_id, takes_over=takes_over)
        self._open(request_id, _Request(None, attach), now)

    def cancel(self, request_id: bytes) -> None:
        """Idempotent; nothing is heard of the request afterwards."""
        self._part(request_id, encode(Cancel(self.frontend_id, request_id)))

    def detach(self, request_id: bytes) -> None:
        """As `cancel`, but a resumable request goes on for the worker's grace."""
        self._part(request_id, encode(Detach(self.frontend_id, request_id)))

    def take_over(self, request_id: bytes, now: float) -> None:
        """Owns a live request from here on, if another does; what was received stays."""
        if not self.owns(request_id):
            self._requests[request_id].attach = self._attach(request_id, takes_over=True)
            self._send_opening(request_id, now)

    def join(self, request_id: bytes, now: float) -> None:
        """Asks for a live request that was only watched, as if it had been submitted here: should
        its owner go, it is ours."""
        request = self._requests[request_id]
        if request.attach is not None and request.submit is not None:
            request.attach = None
            self._send_opening(request_id, now)

    def owns(self, request_id: bytes) -> bool:
        """Whether the request is ours to submit again, and nobody else has taken it over."""
        request = self._requests.get(request_id)
        return request is not None and request.is_owner

    def check_same(
        self,
        request_id: bytes,
        prompt_token_ids: list[int],
        params: SamplingParams,
        pooling: Pooling,
    ) -> None:
        """Raises RequestIdConflictError when something else was asked under this live id."""
        known = self._requests[request_id].submit
        if known is None:
            return
        packed = pack_token_ids(prompt_token_ids)
        asked = replace(known, prompt_token_ids=packed, params=params, pooling=pooling)
        if not known.is_same(asked):
            raise RequestIdConflictError("another request runs under this id: use a new one")

    def prompt_of(self, request_id: bytes) -> list[int]:
        """Of a live request; nothing before it is known."""
        submit = self._requests[request_id].submit
        return unpack_token_ids(submit.prompt_token_ids) if submit else []

    def so_far(self, request_id: bytes) -> Output:
        """All of a live request that was received."""
        request = self._requests[request_id]
        return Output(
            request_id,
            request.output_token_ids.copy(),
            "".join(request.texts),
            logprobs=request.logprobs.copy(),
            prompt_logprobs=request.prompt_logprobs,
        )

    def receive(self, data: bytes, now: float) -> list[News]:
        """Takes one message; raises ProtocolError if it is none."""
        message = decode_reply(data)
        if isinstance(message, TokenizerFiles):
            self.wants_tokenizer = False
            return [message]
        if message.epoch in self._former_epochs:
            return []
        if isinstance(message, Steps):
            return [message]
        self.last_heard = now
        if isinstance(message, Greeting):
            return self._take_greeting(message, now)
        if self.greeting is None or message.epoch != self.greeting.epoch:
            self._sync_soon(now)  # its greeting was lost: ask for it
            return []
        return self._take_frame(message, now)

    def tick(self, now: float) -> list[News]:
        """Call at least every `SYNC_INTERVAL_S`: says what is held, so that nothing stays lost.

        The requests whose time is over although no worker says so.
        """
        if self.greeting is None:
            return []
        overdue = [rid for rid, r in self._requests.items() if now > r.deadline + DEADLINE_MARGIN_S]
        for request_id in overdue:
            self.cancel(request_id)
        has_something_to_say = (
            self._requests or self._farewells or self._has_finished or self.wants_tokenizer
        )
        is_due = now - self._last_sync >= SYNC_INTERVAL_S
        if has_something_to_say and is_due and not self._is_stuck:
            self._sync(now)
        if self.wants_steps and not self._is_stuck and now - self._last_watch >= SYNC_INTERVAL_S:
            self._last_watch = now
            self.outgoing.append(encode(Watch(self.frontend_id)))
        return [Output(request_id, [], "", OUT_OF_TIME) for request_id in overdue]

    @property
    def _is_stuck(self) -> bool:
        """Whether nobody takes our messages: more of them would only pile up."""
        return len(self.outgoing) > len(self._requests) + MAX_SPARE_MESSAGES

    def _attach(self, request_id: bytes, *, takes_over: bool) -> Attach:
        self._num_attempts += 1
        return Attach(self.frontend_id, request_id, 0, takes_over, self._num_attempts)

    def _open(self, request_id: bytes, request: _Request, now: float) -> None:
        self._requests[request_id] = request
        self._farewells.pop(request_id, None)
        self._send_opening(request_id, now)

    def _part(self, request_id: bytes, farewell: bytes) -> None:
        if self._requests.pop(request_id, None) is not None:
            self.outgoing.append(farewell)
            self._farewells[request_id] = farewell

    def _take_greeting(self, greeting: Greeting, now: float) -> list[News]:
        """A first connection, a connection made again, or another worker process."""
        is_same_worker = self.greeting is not None and self.greeting.epoch == greeting.epoch
        self._last_watch = float("-inf")
        if is_same_worker:
            self._has_gap = True  # whatever was sent meanwhile is lost
            self._sync_soon(now)
            return []
        if self.greeting is not None:
            self._former_epochs.add(self.greeting.epoch)
        self.greeting = greeting
        self._frame_number = self._acknowledged = greeting.frame_number
        self._has_gap, self._has_finished = False, True  # it may have heard of us before
        self.outgoing.clear()
        self.outgoing.extend(self._farewells.values())
        for request_id, request in self._requests.items():
            request.patient_until = now + REATTACH_PATIENCE_S
            self._send_opening(request_id, now)
        if self._requests or self.wants_tokenizer:
            self._sync(now)  # also to say where our count of frames begins
        return [greeting]

    def _take_frame(self, frame: Frame, now: float) -> list[News]:
        rows = list(frame.rows())  # all of them are good, or the frame counts for nothing
        self.state, self.stats = frame.state, frame.stats
        expected = self._frame_number if frame.is_heartbeat else self._frame_number + 1
        self._has_gap |= frame.number > expected
        self._frame_number = max(self._frame_number, frame.number)
        events: list[News] = []
        for joined in frame.joined:
            events += self._take_joined(joined.request, now, is_owner=joined.is_owner)
        for row in rows:
            events += self._take_row(row, now)
        for request_id, place in frame.queued:
            events += self._take_place(request_id, place)
        for request_id in split_ids(frame.unknown):
            if request_id in self._requests:
                self._send_opening(request_id, now)
        if self._has_gap:
            self._sync_soon(now)
        elif self._frame_number - self._acknowledged >= ACKNOWLEDGE_EVERY and not self._is_stuck:
            self._send_sync(live=None)  # a mere acknowledgement
        return events

    def _take_joined(self, joined: Submit, now: float, *, is_owner: bool) -> list[News]:
        """From now on it is submitted like our own if we own it. After a restart something else
        may have been submitted under its id."""
        request = self._requests.get(joined.request_id)
        if request is None:
            return []
        if request.submit is not None and not request.submit.is_same(joined):
            self.detach(joined.request_id)
            return [Output(joined.request_id, [], "", NOT_FOUND)]
        request.submit = replace(joined, frontend_id=self.frontend_id)
        request.patient_until, request.is_owner = 0.0, is_owner
        request.deadline = now + joined.ttl_ms / 1000 if joined.ttl_ms else float("inf")
        if is_owner:
            request.attach = None
        prompt = unpack_token_ids(joined.prompt_token_ids)
        return [Opened(joined.request_id, joined.context, prompt)]

    def _take_row(self, row: Row, now: float) -> list[News]:
        """The part of the row that is new; a gap is noted when something before it is missing."""
        request = self._requests.get(row.request_id)
        if request is None or (_is_missing(row) and request.is_patient(now)):
            return []
        if _is_missing(row) and request.attach is None:  # said of an earlier one
            self._send_opening(row.request_id, now)
            return []
        if request.submit is None and row.token_ids:
            self._has_gap = True  # the Attach was lost: this is what an earlier reader gets
            return []
        num_known = len(request.output_token_ids) - row.offset
        num_known_text = request.text_length - row.text_offset
        if num_known < 0 or num_known_text < 0:
            self._has_gap = True
            return []
        token_ids, text = row.token_ids[num_known:], row.text[num_known_text:]
        if num_known > len(row.token_ids):  # ended before what is held: its last text is older
            text = ""
        request.output_token_ids += token_ids
        request.texts.append(text)
        request.text_length += len(text)
        if row.finish is not None:
            del self._requests[row.request_id]
            self._has_finished = True
        elif not token_ids:
            return []
        output = Output(row.request_id, token_ids, text, row.finish)
        if row.extras is not None and request.submit is not None:
            output = request.with_extras(output, row.extras, num_known)
        return [output]

    def _take_place(self, request_id: bytes, place: QueuePlace) -> list[News]:
        """Only what has changed, and of what is known to wait."""
        request = self._requests.get(request_id)
        if request is None or request.submit is None or request.output_token_ids:
            return []
        if place == request.queue:
            return []
        request.queue = place
        return [Output(request_id, [], "", queue=place)]

    def _send_opening(self, request_id: bytes, now: float) -> None:
        """Asks for the request, with what is held of it."""
        request = self._requests[request_id]
        held = request.output_token_ids
        if request.attach is not None:
            self.outgoing.append(encode(replace(request.attach, num_held=len(held))))
            return
        assert request.submit is not None, "what is not attached to was submitted"
        request.is_owner |= not held  # unless we are told otherwise, before the first token
        has_deadline = request.deadline != float("inf")
        submit = replace(
            request.submit,
            output_token_ids=pack_token_ids(held),
            ttl_ms=max(1, round((request.deadline - now) * 1000)) if has_deadline else 0,
            was_owner=request.is_owner and bool(held),
        )
        self.outgoing.append(encode(submit))

    def _sync_soon(self, now: float) -> None:
        """At once, but not again for every frame that was on its way already, and not while the
        worker takes nothing: the gap stays noted."""
        if now - self._last_sync >= GAP_SYNC_INTERVAL_S and not self._is_stuck:
            self._sync(now)

    def _sync(self, now: float) -> None:
        self.outgoing.extend(self._farewells.values())
        self._farewells.clear()
        for request_id, request in self._requests.items():
            if request.is_attaching or request.is_patient(now):
                self._send_opening(request_id, now)
        held = {rid: len(request.output_token_ids) for rid, request in self._requests.items()}
        self._send_sync(pack_live(held))
        self._last_sync = now
        self._has_gap = self._has_finished = False

    def _send_sync(self, live: bytes | None) -> None:
        self._acknowledged = self._frame_number
        self.outgoing.append(
            encode(
                Sync(
                    frontend_id=self.frontend_id,
                    epoch=self.greeting.epoch if self.greeting else 0,
                    frame_number=self._frame_number,
                    has_gap=self._has_gap,
                    wants_tokenizer=self.wants_tokenizer,
                    live=live,
                )
            )
        )


def _is_missing(row: Row) -> bool:
    return row.finish is not None and row.finish.code == NOT_FOUND.code
