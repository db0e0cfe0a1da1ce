"""What each frontend is told next. Sans-IO: clock and send come in.

All that matters of a reading is one pointer: how many output tokens were handed out. A frame is
the difference between the output and the pointer. A send that would block moves nothing, and the
next frame is longer; a frame that was lost moves the pointer back, by the next Sync. So
back-pressure, coalescing, replay and resumption are one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from ..shared.codec import encode
from ..shared.messages import (
    MAX_FRAME_ROWS,
    Frame,
    Greeting,
    Joined,
    Row,
    Sync,
    TokenizerFiles,
    WorkerState,
    WorkerStats,
    pack_token_ids,
)
from ..shared.queue_place import QueuePlace
from .stream import Frontend, Reading, Stream

HEARTBEAT_S = 0.25
RETRY_S = 0.02  # what was not taken, or did not fit into a frame
MAX_UNACKNOWLEDGED_FRAMES = 512
MAX_FRAME_BYTES = 1 << 20  # then the rest waits for the next

Send = Callable[[bytes, bytes], bool]  # (topic, body), False when it would block


@dataclass(slots=True)
class _News:
    """What one frame tells of requests."""

    verdicts: list[bytes] = field(default_factory=list)  # request ids of the first rows
    readings: list[Reading] = field(default_factory=list)
    joined: list[Joined] = field(default_factory=list)
    queued: list[tuple[bytes, QueuePlace]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    num_bytes: int = 0  # about

    @property
    def is_full(self) -> bool:
        num_rows = max(len(self.readings), len(self.rows))
        return num_rows >= MAX_FRAME_ROWS or self.num_bytes >= MAX_FRAME_BYTES

    def add(self, reading: Reading, now: float) -> None:
        row = reading.row()
        self.readings.append(reading)
        if reading.needs_joined:
            self.joined.append(reading.joined(now))
            self.num_bytes += reading.stream.joined_bytes
        if row is not None:
            self.rows.append(row)
            self.num_bytes += 64 + 5 * len(row.token_ids) + 4 * len(row.text)
            if row.extras is not None:
                extras = row.extras
                self.num_bytes += len(extras.logprobs) + len(extras.prompt_logprobs)
                self.num_bytes += len(extras.embedding)


class Publisher:
    """Owns the Frontends and the numbers of their frames."""

    def __init__(self, greeting: Greeting, tokenizer: TokenizerFiles) -> None:
        self.state: WorkerState = "ready"
        self._greeting = greeting
        self._tokenizer = tokenizer
        self._frontends: dict[bytes, Frontend] = {}

    @property
    def epoch(self) -> int:
        return self._greeting.epoch

    @property
    def has_unsent(self) -> bool:
        return any(f.is_subscribed and f.has_news for f in self._frontends.values())

    @property
    def patience_s(self) -> float:
        """How long a worker without work may sleep."""
        return RETRY_S if self.has_unsent else HEARTBEAT_S

    def drain(self) -> None:
        """From now on every frontend is told that no new requests are taken."""
        self.state = "draining"
        self.speak_up()

    def speak_up(self) -> None:
        """The next `publish` reaches every frontend, news or not."""
        for frontend in self._frontends.values():
            frontend.last_sent = float("-inf")

    def subscribed(self, frontend_id: bytes, now: float) -> None:
        frontend = self._frontend(frontend_id, now)
        frontend.is_subscribed = frontend.needs_greeting = True

    def unsubscribed(self, frontend_id: bytes, now: float) -> None:
        frontend = self._frontend(frontend_id, now)
        frontend.is_subscribed, frontend.unsubscribed_at = False, now

    def heard(self, frontend_id: bytes, now: float) -> Frontend:
        frontend = self._frontend(frontend_id, now)
        frontend.last_heard = now
        return frontend

    def watchers(self, now: float) -> list[bytes]:
        """The ids of the frontends that want to be told of each step."""
        frontends = self._frontends.values()
        return [f.frontend_id for f in frontends if f.is_subscribed and now < f.watches_until]

    def notify(self, stream: Stream) -> None:
        """The stream has new tokens or has ended."""
        for reading in stream.readings.values():
            if reading.has_row:
                reading.frontend.news[stream.request_id] = reading

    def acknowledge(self, frontend: Frontend, sync: Sync) -> bool:
        """Takes what the frontend says of its frames; whether it speaks of this worker."""
        frontend.needs_tokenizer |= sync.wants_tokenizer
        if sync.epoch != self.epoch:
            frontend.needs_greeting = True
            return False
        frontend.acknowledged = max(frontend.acknowledged, sync.frame_number)
        frontend.frame_number = max(frontend.frame_number, sync.frame_number)
        return True

    def expire(self, now: float) -> list[Frontend]:
        """Forgets frontends that are gone; they read nothing any more."""
        gone = [f for f in self._frontends.values() if f.is_gone(now)]
        for frontend in gone:
            if not frontend.is_subscribed:  # else its frame numbers must go on where they are
                del self._frontends[frontend.frontend_id]
        return gone

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
        if frontend.has_news and not is_stalled:
            self._send_news(frontend, send, stats, now)
        elif now - frontend.last_sent >= HEARTBEAT_S:
            news = _News(queued=_queued(frontend))
            heartbeat = self._frame(frontend.frame_number, stats, news, [])
            if send(topic, encode(heartbeat)):
                frontend.last_sent = now
                _forget(frontend, news.queued)

    def _send_news(self, frontend: Frontend, send: Send, stats: WorkerStats, now: float) -> None:
        news = _news_of(frontend, now)
        frame = self._frame(frontend.frame_number + 1, stats, news, frontend.unknown)
        if not frame.is_heartbeat:
            if not send(frontend.frontend_id, encode(frame)):
                return
            frontend.frame_number += 1
            frontend.last_sent = now
            frontend.unknown = []
            _forget(frontend, news.queued)
        for reading in news.readings:
            del frontend.news[reading.stream.request_id]
        for request_id in news.verdicts:
            del frontend.unsaid[request_id]
        for row in news.rows[len(news.verdicts) :]:
            given = frontend.readings[row.request_id]
            given.num_sent = max(given.num_sent, row.offset + len(row.token_ids))
            given.last_frame = frontend.frame_number
            given.is_finish_sent = row.finish is not None
            given.needs_joined = False

    def _frame(self, number: int, stats: WorkerStats, news: _News, unknown: list[bytes]) -> Frame:
        rows = news.rows
        return Frame(
            epoch=self.epoch,
            number=number,
            state=self.state,
            stats=stats,
            unknown=b"".join(unknown),
            joined=news.joined,
            request_ids=b"".join(row.request_id for row in rows),
            offsets=[row.offset for row in rows],
            num_tokens=[len(row.token_ids) for row in rows],
            token_ids=b"".join(pack_token_ids(row.token_ids) for row in rows),
            text_offsets=[row.text_offset for row in rows],
            texts=[row.text for row in rows],
            finishes=[(i, row.finish) for i, row in enumerate(rows) if row.finish is not None],
            extras=[(i, row.extras) for i, row in enumerate(rows) if row.extras is not None],
            queued=news.queued,
        )

    def _frontend(self, frontend_id: bytes, now: float) -> Frontend:
        if frontend_id not in self._frontends:
            self._frontends[frontend_id] = Frontend(frontend_id, now, unsubscribed_at=now)
        return self._frontends[frontend_id]


def _news_of(frontend: Frontend, now: float) -> _News:
    """As much as fits into a frame; a Joined goes with the first row."""
    news = _News(queued=_queued(frontend))
    for request_id, finish in islice(frontend.unsaid.items(), MAX_FRAME_ROWS // 2):
        news.verdicts.append(request_id)
        news.rows.append(Row(request_id, 0, [], 0, "", finish))
    for reading in frontend.news.values():
        if news.is_full:
            break
        news.add(reading, now)
    return news


def _queued(frontend: Frontend) -> list[tuple[bytes, QueuePlace]]:
    """Of those that still wait: what began meanwhile has no place any more."""
    frontend.queued = {
        request_id: place
        for request_id, place in frontend.queued.items()
        if frontend.readings[request_id].stream.sequence.waits_to_begin
    }
    return [*islice(frontend.queued.items(), MAX_FRAME_ROWS)]


def _forget(frontend: Frontend, sent: list[tuple[bytes, QueuePlace]]) -> None:
    for request_id, _ in sent:
        del frontend.queued[request_id]
