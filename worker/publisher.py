"""What each frontend has been told, and what it is told next. Sans-IO: clock and send come in.

All that matters of a request is one pointer: how many output tokens were handed out. A frame is
the difference between the output and the pointer. A send that would block moves nothing, and the
next frame is longer; a frame that was lost moves the pointer back, by the next Sync. So
back-pressure, coalescing, replay and resumption are one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from ..shared.codec import encode
from ..shared.messages import (
    MAX_FRAME_ROWS,
    Frame,
    Greeting,
    Row,
    Sync,
    TokenizerFiles,
    WorkerState,
    WorkerStats,
    pack_token_ids,
    unpack_live,
)
from .sequence import Sequence

HEARTBEAT_S = 0.25
LEASE_S = 10.0  # a frontend this long silent is gone
UNSUBSCRIBED_LEASE_S = 3.0  # ... and this long without a subscription: it may be reconnecting
MAX_UNACKNOWLEDGED_FRAMES = 512
MAX_FRAME_TOKENS = 1 << 16

Send = Callable[[bytes, bytes], bool]  # (topic, body), False when it would block


@dataclass(slots=True)
class Stream:
    """One request and how much of it has been handed out."""

    sequence: Sequence
    num_sent: int
    is_finish_sent: bool = False

    def row(self) -> Row:
        """All that was not handed out yet."""
        sequence, offset = self.sequence, self.num_sent
        detokenizer = sequence.detokenizer
        ends = detokenizer.released_ends
        text_start = ends[offset - 1] if offset else 0
        text_end = ends[-1] if ends and sequence.finish is None else len(detokenizer.text)
        return Row(
            sequence.request_id,
            offset,
            sequence.token_ids[sequence.num_prompt_tokens + offset :],
            text_start,
            detokenizer.text[text_start:text_end],
            sequence.finish,
        )


@dataclass(slots=True)
class Frontend:
    """One frontend, which is one topic."""

    frontend_id: bytes
    last_heard: float
    streams: dict[bytes, Stream] = field(default_factory=dict)
    news: dict[bytes, Stream] = field(default_factory=dict)  # have something to hand out
    unknown: list[bytes] = field(default_factory=list)
    frame_number: int = 0
    acknowledged: int = 0
    last_sent: float = float("-inf")
    is_subscribed: bool = False
    unsubscribed_at: float = 0.0
    needs_greeting: bool = False
    needs_tokenizer: bool = False

    def is_gone(self, now: float) -> bool:
        is_silent = bool(self.streams) and now - self.last_heard > LEASE_S
        return is_silent or (
            not self.is_subscribed and now - self.unsubscribed_at > UNSUBSCRIBED_LEASE_S
        )


class Publisher:
    """Owns every Stream. A request id is known from `open` until its frontend has its end."""

    def __init__(self, greeting: Greeting, tokenizer: TokenizerFiles) -> None:
        self.state: WorkerState = "ready"
        self._greeting = greeting
        self._tokenizer = tokenizer
        self._frontends: dict[bytes, Frontend] = {}
        self._owners: dict[bytes, Frontend] = {}  # by request id

    @property
    def epoch(self) -> int:
        return self._greeting.epoch

    def find(self, request_id: bytes) -> Sequence | None:
        owner = self._owners.get(request_id)
        return owner.streams[request_id].sequence if owner else None

    def unfinished(self) -> list[Sequence]:
        sequences = (o.streams[request_id].sequence for request_id, o in self._owners.items())
        return [sequence for sequence in sequences if sequence.finish is None]

    def drain(self) -> None:
        """From now on every frontend is told that no new requests are taken."""
        self.state = "draining"
        self.speak_up()

    def speak_up(self) -> None:
        """The next `publish` reaches every frontend, news or not."""
        for frontend in self._frontends.values():
            frontend.last_sent = float("-inf")

    @property
    def has_unsent(self) -> bool:
        return any(f.is_subscribed and f.news for f in self._frontends.values())

    def subscribed(self, frontend_id: bytes, now: float) -> None:
        frontend = self._frontend(frontend_id, now)
        frontend.is_subscribed = frontend.needs_greeting = True

    def unsubscribed(self, frontend_id: bytes, now: float) -> None:
        frontend = self._frontend(frontend_id, now)
        frontend.is_subscribed, frontend.unsubscribed_at = False, now

    def heard(self, frontend_id: bytes, now: float) -> None:
        self._frontend(frontend_id, now).last_heard = now

    def open(self, frontend_id: bytes, sequence: Sequence, now: float) -> None:
        """From here on the frontend hears of the sequence; tokens it came with are handed out."""
        frontend = self._frontend(frontend_id, now)
        stream = Stream(sequence, sequence.num_output_tokens)
        frontend.streams[sequence.request_id] = stream
        self._owners[sequence.request_id] = frontend
        if sequence.finish is not None:
            frontend.news[sequence.request_id] = stream

    def notify(self, sequence: Sequence) -> None:
        """The sequence has new tokens or has ended."""
        frontend = self._owners.get(sequence.request_id)
        if frontend is not None:
            frontend.news[sequence.request_id] = frontend.streams[sequence.request_id]

    def close(self, frontend_id: bytes, request_id: bytes) -> Sequence | None:
        """Forgets the request; its sequence, or None when it is not this frontend's."""
        frontend = self._owners.get(request_id)
        if frontend is None or frontend.frontend_id != frontend_id:
            return None
        del self._owners[request_id]
        frontend.news.pop(request_id, None)
        return frontend.streams.pop(request_id).sequence

    def sync(self, sync: Sync, now: float) -> list[Sequence]:
        """Brings both sides together; the sequences that nobody waits for any more.

        Raises ValueError for malformed live records.
        """
        live = None if sync.live is None else unpack_live(sync.live)
        frontend = self._frontend(sync.frontend_id, now)
        frontend.needs_tokenizer |= sync.wants_tokenizer
        if sync.epoch != self.epoch:
            frontend.needs_greeting = True
            return []
        frontend.acknowledged = max(frontend.acknowledged, sync.frame_number)
        frontend.frame_number = max(frontend.frame_number, sync.frame_number)
        if live is None:
            return []
        if sync.has_gap or sync.frame_number == frontend.frame_number:  # nothing in flight
            self._rewind(frontend, live)
        frontend.unknown = [request_id for request_id in live if request_id not in frontend.streams]
        return self._abandoned(frontend, live)

    def _rewind(self, frontend: Frontend, live: dict[bytes, int]) -> None:
        for request_id, num_held in live.items():
            stream = frontend.streams.get(request_id)
            if stream is None or stream.num_sent < num_held:
                continue
            if stream.num_sent > num_held or stream.is_finish_sent:
                stream.num_sent, stream.is_finish_sent = num_held, False
                frontend.news[request_id] = stream

    def _abandoned(self, frontend: Frontend, live: dict[bytes, int]) -> list[Sequence]:
        absent = [stream for rid, stream in frontend.streams.items() if rid not in live]
        for stream in absent:
            self.close(frontend.frontend_id, stream.sequence.request_id)
        return [stream.sequence for stream in absent if stream.sequence.finish is None]

    def expire(self, now: float) -> list[Sequence]:
        """Forgets frontends that are gone; their sequences, which nobody waits for any more."""
        gone = [f for f in self._frontends.values() if f.is_gone(now)]
        abandoned = [sequence for f in gone for sequence in self._abandoned(f, {})]
        for frontend in gone:
            if not frontend.is_subscribed:  # else its frame numbers must go on where they are
                del self._frontends[frontend.frontend_id]
        return abandoned

    def publish(self, send: Send, stats: WorkerStats, now: float) -> None:
        """Sends each frontend what it lacks, as far as it takes it."""
        for frontend in self._frontends.values():
            if frontend.is_subscribed:
                self._publish_to(frontend, send, stats, now)

    def _publish_to(self, frontend: Frontend, send: Send, stats: WorkerStats, now: float) -> None:
        topic = frontend.frontend_id
        if frontend.needs_greeting:
            greeting = replace(self._greeting, frame_number=frontend.frame_number)
            frontend.needs_greeting = not send(topic, encode(greeting))
            if frontend.needs_greeting:
                return
        if frontend.needs_tokenizer:
            frontend.needs_tokenizer = not send(topic, encode(self._tokenizer))
        is_stalled = frontend.frame_number - frontend.acknowledged >= MAX_UNACKNOWLEDGED_FRAMES
        if (frontend.news or frontend.unknown) and not is_stalled:
            self._send_news(frontend, send, stats, now)
        elif now - frontend.last_sent >= HEARTBEAT_S:
            heartbeat = self._frame(frontend.frame_number, stats, [], [])
            if send(topic, encode(heartbeat)):
                frontend.last_sent = now

    def _send_news(self, frontend: Frontend, send: Send, stats: WorkerStats, now: float) -> None:
        streams = list(islice(frontend.news.values(), MAX_FRAME_ROWS))
        rows = list(_within_limit(streams))
        del streams[len(rows) :]
        frame = self._frame(frontend.frame_number + 1, stats, rows, frontend.unknown)
        if not send(frontend.frontend_id, encode(frame)):
            return
        frontend.frame_number += 1
        frontend.last_sent = now
        frontend.unknown = []
        for stream, row in zip(streams, rows, strict=True):
            stream.num_sent = row.offset + len(row.token_ids)
            stream.is_finish_sent = row.finish is not None
            del frontend.news[row.request_id]

    def _frame(
        self, number: int, stats: WorkerStats, rows: list[Row], unknown: list[bytes]
    ) -> Frame:
        return Frame(
            epoch=self.epoch,
            number=number,
            state=self.state,
            stats=stats,
            unknown=b"".join(unknown),
            request_ids=b"".join(row.request_id for row in rows),
            offsets=[row.offset for row in rows],
            num_tokens=[len(row.token_ids) for row in rows],
            token_ids=b"".join(pack_token_ids(row.token_ids) for row in rows),
            text_offsets=[row.text_offset for row in rows],
            texts=[row.text for row in rows],
            finishes=[(i, row.finish) for i, row in enumerate(rows) if row.finish is not None],
        )

    def _frontend(self, frontend_id: bytes, now: float) -> Frontend:
        if frontend_id not in self._frontends:
            self._frontends[frontend_id] = Frontend(frontend_id, now, unsubscribed_at=now)
        return self._frontends[frontend_id]


def _within_limit(streams: list[Stream]) -> Iterator[Row]:
    """Rows up to MAX_FRAME_TOKENS in all, one at least."""
    num_tokens = 0
    for stream in streams:
        row = stream.row()
        num_tokens += len(row.token_ids)
        if num_tokens > MAX_FRAME_TOKENS and num_tokens > len(row.token_ids):
            return
        yield row
