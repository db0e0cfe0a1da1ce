"""A frontend's side of the protocol. Sans-IO: bytes and clock in, bytes and events out.

It keeps of every unfinished request what is needed to ask for it again: after a lost message the
worker is told what is held here, after a restart the requests are submitted anew with the tokens
that they have, and the streams go on where they were.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..shared.codec import decode_reply, encode
from ..shared.messages import (
    Cancel,
    Finish,
    Frame,
    Greeting,
    Row,
    Submit,
    Sync,
    TokenizerFiles,
    WorkerState,
    WorkerStats,
    pack_live,
    pack_token_ids,
    split_ids,
)
from ..shared.sampling_params import SamplingParams

SYNC_INTERVAL_S = 1.0
GAP_SYNC_INTERVAL_S = 0.02
ACKNOWLEDGE_EVERY = 100  # frames

CANCELLED = Finish("abort", code="cancelled", message="cancelled by the caller")


@dataclass(frozen=True, slots=True)
class Output:
    """News of one request: what was not known before, in order, exactly once."""

    request_id: bytes
    token_ids: list[int]
    text: str
    finish: Finish | None = None


News = Greeting | TokenizerFiles | Output


@dataclass(slots=True)
class _Request:
    """What is needed to submit the request again."""

    prompt_token_ids: bytes
    tokenizer: bytes
    params: SamplingParams
    output_token_ids: list[int] = field(default_factory=list)
    text_length: int = 0


class FrontendProtocol:
    """Owns the unfinished requests of one frontend.

    `outgoing` holds the messages to send, in order; the caller pops those that were taken. A
    request leaves with its one final Output, or with `cancel`.
    """

    def __init__(self, frontend_id: bytes, now: float) -> None:
        self.frontend_id = frontend_id
        self.outgoing: deque[bytes] = deque()
        self.greeting: Greeting | None = None
        self.state: WorkerState = "ready"
        self.stats = WorkerStats()
        self.last_heard = now
        self.wants_tokenizer = False
        self._requests: dict[bytes, _Request] = {}
        self._former_epochs: set[int] = set()
        self._frame_number = 0
        self._acknowledged = 0
        self._last_sync = float("-inf")
        self._has_gap = False
        self._has_finished = False  # something that the worker still keeps for us

    def submit(
        self, request_id: bytes, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        """Only after the greeting: it tells which tokenizer the ids must come from."""
        assert self.greeting is not None, "nothing is sent before the greeting"
        packed = pack_token_ids(prompt_token_ids)
        self._requests[request_id] = _Request(packed, self.greeting.tokenizer, params)
        self._send_submit(request_id)

    def cancel(self, request_id: bytes) -> None:
        """Idempotent; nothing is heard of the request afterwards."""
        if self._requests.pop(request_id, None) is not None:
            self.outgoing.append(encode(Cancel(self.frontend_id, request_id)))

    def receive(self, data: bytes, now: float) -> list[News]:
        """Takes one message; raises ProtocolError if it is none."""
        message = decode_reply(data)
        if isinstance(message, TokenizerFiles):
            self.wants_tokenizer = False
            return [message]
        if message.epoch in self._former_epochs:
            return []
        self.last_heard = now
        if isinstance(message, Greeting):
            return self._take_greeting(message, now)
        if self.greeting is None or message.epoch != self.greeting.epoch:
            self._sync_soon(now)  # its greeting was lost: ask for it
            return []
        return self._take_frame(message, now)

    def tick(self, now: float) -> None:
        """Call at least every `SYNC_INTERVAL_S`: says what is held, so that nothing stays lost."""
        if self.greeting is None:
            return
        has_something_to_say = self._requests or self._has_finished or self.wants_tokenizer
        if has_something_to_say and now - self._last_sync >= SYNC_INTERVAL_S:
            self._sync(now)

    def _take_greeting(self, greeting: Greeting, now: float) -> list[News]:
        """A first connection, a connection made again, or another worker process."""
        is_same_worker = self.greeting is not None and self.greeting.epoch == greeting.epoch
        if is_same_worker:
            self._has_gap = True  # whatever was sent meanwhile is lost
            self._sync(now)
            return []
        if self.greeting is not None:
            self._former_epochs.add(self.greeting.epoch)
        self.greeting = greeting
        self._frame_number = self._acknowledged = greeting.frame_number
        self._has_gap = self._has_finished = False
        self.outgoing.clear()
        for request_id in self._requests:
            self._send_submit(request_id)
        if self.wants_tokenizer:
            self._sync(now)
        return [greeting]

    def _take_frame(self, frame: Frame, now: float) -> list[News]:
        rows = list(frame.rows())  # all of them are good, or the frame counts for nothing
        self.state, self.stats = frame.state, frame.stats
        expected = self._frame_number if frame.is_heartbeat else self._frame_number + 1
        self._has_gap |= frame.number > expected
        self._frame_number = max(self._frame_number, frame.number)
        events: list[News] = []
        for row in rows:
            output = self._take_row(row)
            if output is not None:
                events.append(output)
        for request_id in split_ids(frame.unknown):
            if request_id in self._requests:
                self._send_submit(request_id)
        if self._has_gap:
            self._sync_soon(now)
        elif self._frame_number - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._send_sync(live=None)  # a mere acknowledgement
        return events

    def _take_row(self, row: Row) -> Output | None:
        """The part of the row that is new; a gap is noted when something before it is missing."""
        request = self._requests.get(row.request_id)
        if request is None:
            return None
        num_known = len(request.output_token_ids) - row.offset
        num_known_text = request.text_length - row.text_offset
        if num_known < 0 or num_known_text < 0:
            self._has_gap = True
            return None
        token_ids, text = row.token_ids[num_known:], row.text[num_known_text:]
        request.output_token_ids += token_ids
        request.text_length += len(text)
        if row.finish is not None:
            del self._requests[row.request_id]
            self._has_finished = True
        elif not token_ids:
            return None
        return Output(row.request_id, token_ids, text, row.finish)

    def _send_submit(self, request_id: bytes) -> None:
        request = self._requests[request_id]
        self.outgoing.append(
            encode(
                Submit(
                    frontend_id=self.frontend_id,
                    request_id=request_id,
                    tokenizer=request.tokenizer,
                    prompt_token_ids=request.prompt_token_ids,
                    output_token_ids=pack_token_ids(request.output_token_ids),
                    params=request.params,
                )
            )
        )

    def _sync_soon(self, now: float) -> None:
        """At once, but not again for every frame that was on its way already."""
        if now - self._last_sync >= GAP_SYNC_INTERVAL_S:
            self._sync(now)

    def _sync(self, now: float) -> None:
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
