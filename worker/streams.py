"""Every request that is known, and who reads and owns it. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..shared.messages import Attach, Finish, Submit, Sync
from .sequence import Sequence
from .stream import Frontend, Reading, Stream

MAX_KEPT = 4096  # finished requests that nobody reads
MAX_KEPT_TOKENS = 1 << 20  # of theirs

TAKEN_OVER = Finish("abort", code="taken_over", message="another reader has taken the stream over")
NOT_FOUND = Finish(
    "error",
    code="stream_not_found",
    message="no request runs under this id, or was kept until now",
)
CONFLICT = Finish(
    "error",
    code="request_id_conflict",
    message="another request runs under this id: use a new one",
)


class Streams:
    """Owns every Stream, from `open` until nobody reads it or may still come for it.

    Invariants: the owner is a reader; a stream without readers waits in `_unread` for its grace.
    Sequences that nobody wants any more collect in `abandoned`, for the caller to end.
    """

    def __init__(self, grace_s: float) -> None:
        self.abandoned: list[Sequence] = []
        self._grace_s = grace_s
        self._streams: dict[bytes, Stream] = {}
        self._unread: dict[bytes, Stream] = {}  # oldest first

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    @property
    def num_unread(self) -> int:
        return len(self._unread)

    def find(self, request_id: bytes) -> Stream | None:
        return self._streams.get(request_id)

    def open(self, frontend: Frontend, submit: Submit, sequence: Sequence) -> Stream:
        """A new request; tokens that it came with count as handed out."""
        stream = Stream(replace(submit, output_token_ids=b""), sequence)
        self._streams[stream.request_id] = stream
        stream.give_to(frontend)
        self._read(stream, frontend, sequence.num_output_tokens, may_own=True, is_joined=False)
        return stream

    def join(self, stream: Stream, frontend: Frontend, submit: Submit) -> None:
        """A Submit of a request that is known: sent twice, sent anew, or sent by another."""
        generation = stream.request.generation
        if not stream.is_for(submit):
            frontend.tell(submit.request_id, CONFLICT)
        elif stream.owner is frontend and submit.generation <= generation:
            reading = frontend.readings[submit.request_id]
            reading.is_joined = reading.needs_joined = True  # it may not know that this is its own
            reading.rewind(len(submit.output_token_ids) // 4)
        elif submit.generation < generation and submit.output_token_ids:  # a former owner's
            frontend.tell(submit.request_id, TAKEN_OVER)
        else:
            if submit.generation > generation:  # another was faster after a restart
                self._succeed(stream, frontend, submit.generation)
            if stream.owner is None:
                stream.give_to(frontend)
            num_held = len(submit.output_token_ids) // 4
            self._read(stream, frontend, num_held, may_own=True, is_joined=True)

    def attach(self, frontend: Frontend, attach: Attach) -> None:
        """A reader of a request that it did not submit."""
        stream = self.find(attach.request_id)
        if stream is None:
            frontend.tell(attach.request_id, NOT_FOUND)
            return
        is_running = stream.sequence.finish is None
        if attach.takes_over and is_running and stream.owner is not frontend:
            is_repeated = stream.takeovers.get(frontend.frontend_id) == attach.attempt
            if is_repeated and stream.taker_id != frontend.frontend_id:
                frontend.tell(attach.request_id, TAKEN_OVER)
                return
            stream.takeovers[frontend.frontend_id] = attach.attempt
            stream.taker_id = frontend.frontend_id
            self._fence(stream)
            if stream.last_owner_id != frontend.frontend_id:
                stream.set_generation(stream.request.generation + 1)
            stream.give_to(frontend)
        may_own = attach.takes_over
        self._read(stream, frontend, attach.num_held, may_own=may_own, is_joined=True)

    def sync(self, frontend: Frontend, live: dict[bytes, int], sync: Sync, now: float) -> None:
        """The frontend says what it waits for, and how much of it it holds.

        Frames keep their order: what it lacks of those up to its `frame_number` is lost.
        """
        for request_id in [rid for rid in frontend.verdicts if rid not in live]:
            del frontend.verdicts[request_id]
            frontend.unsaid.pop(request_id, None)
        for request_id in [rid for rid in frontend.readings if rid not in live]:
            self.leave(frontend, request_id, now)
        frontend.unknown = []
        for request_id, num_held in live.items():
            reading = frontend.readings.get(request_id)
            verdict = frontend.verdicts.get(request_id)
            if reading is not None and (sync.has_gap or sync.frame_number >= reading.last_frame):
                reading.rewind(num_held)
            elif reading is None and verdict is not None:
                frontend.unsaid[request_id] = verdict
            elif reading is None:
                frontend.unknown.append(request_id)

    def leave(self, frontend: Frontend, request_id: bytes, now: float) -> None:
        """The frontend reads no further. A request without an owner passes to a reader who may
        own it, or waits for one if it is resumable."""
        reading = frontend.readings.pop(request_id, None)
        if reading is None:
            return
        frontend.news.pop(request_id, None)
        stream = reading.stream
        del stream.readings[frontend.frontend_id]
        if stream.owner is frontend:
            self._bequeath(stream)
        if not stream.readings:
            self._put_aside(stream, now)

    def expire(self, now: float) -> None:
        """Forgets what nobody has come for within the grace; of the finished, the oldest, too, when
        they are too much to keep."""
        overdue = [s for s in self._unread.values() if now - s.unread_since > self._grace_s]
        for stream in overdue:
            self._forget(stream)
        finished = [s for s in self._unread.values() if s.sequence.finish is not None]
        num_tokens = sum(stream.sequence.num_tokens for stream in finished)
        for number, stream in enumerate(finished):
            if num_tokens <= MAX_KEPT_TOKENS and len(finished) - number <= MAX_KEPT:
                return
            num_tokens -= stream.sequence.num_tokens
            self._forget(stream)

    def _read(
        self, stream: Stream, frontend: Frontend, num_held: int, *, may_own: bool, is_joined: bool
    ) -> None:
        former = frontend.readings.get(stream.request_id)
        if former is not None:
            del former.stream.readings[frontend.frontend_id]
        reading = Reading(stream, frontend, num_held, may_own, is_joined, needs_joined=is_joined)
        stream.readings[frontend.frontend_id] = reading
        frontend.readings[stream.request_id] = reading
        frontend.news[stream.request_id] = reading
        frontend.verdicts.pop(stream.request_id, None)
        frontend.unsaid.pop(stream.request_id, None)
        self._unread.pop(stream.request_id, None)

    def _fence(self, stream: Stream) -> None:
        """The owner is one no longer, and is told."""
        owner, stream.owner = stream.owner, None
        if owner is not None:
            del stream.readings[owner.frontend_id]
            del owner.readings[stream.request_id]
            owner.news.pop(stream.request_id, None)
            owner.tell(stream.request_id, TAKEN_OVER)

    def _succeed(self, stream: Stream, frontend: Frontend, generation: int) -> None:
        """Fences a former owner off; one that holds nothing yet is a new reader and stays one."""
        owner = stream.owner
        if owner is not None and owner.readings[stream.request_id].is_resumed:
            self._fence(stream)
        stream.owner, stream.last_owner_id = None, frontend.frontend_id
        stream.set_generation(generation)

    def _bequeath(self, stream: Stream) -> None:
        stream.owner = None
        heir = next((r for r in stream.readings.values() if r.may_own), None)
        if heir is not None:
            stream.give_to(heir.frontend)
            heir.needs_joined = heir.is_joined = True
            heir.frontend.news[stream.request_id] = heir
        elif stream.readings and not stream.is_kept and stream.sequence.finish is None:
            self.abandoned.append(stream.sequence)

    def _put_aside(self, stream: Stream, now: float) -> None:
        if not stream.is_kept:
            self._forget(stream)
            return
        stream.unread_since = now
        self._unread[stream.request_id] = stream

    def _forget(self, stream: Stream) -> None:
        """One that failed may have been replaced by another attempt under its id."""
        if self._streams.get(stream.request_id) is stream:
            del self._streams[stream.request_id]
            self._unread.pop(stream.request_id, None)
        if stream.sequence.finish is None:
            self.abandoned.append(stream.sequence)
