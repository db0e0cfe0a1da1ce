"""Every request that is known, and who reads and owns it. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..shared.finishes import CONFLICT, NOT_FOUND, TAKEN_OVER
from ..shared.messages import Attach, Submit, Sync
from .ownership import Ownership
from .sequence import Sequence
from .stream import Frontend, Reading, Stream

MAX_KEPT = 4096  # finished requests that nobody reads
MAX_KEPT_BYTES = 64 << 20  # of theirs


class Streams:
    """Owns every Stream, from `open` until nobody reads it or may still come for it.

    Invariants: who is in line for a stream reads it; one without readers waits in `_unread` for
    its grace.
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
    def num_orphans(self) -> int:
        """That run on without a reader."""
        return sum(stream.sequence.finish is None for stream in self._unread.values())

    def find(self, request_id: bytes) -> Stream | None:
        return self._streams.get(request_id)

    def open(self, frontend: Frontend, submit: Submit, sequence: Sequence) -> Stream:
        """A new request; tokens that it came with count as handed out."""
        request = replace(submit, output_token_ids=b"", was_owner=False)
        stream = Stream(request, sequence, Ownership(submit.generation))
        self._streams[stream.request_id] = stream
        stream.ownership.join(frontend.frontend_id)
        reading = self._read(stream, frontend, sequence.num_output_tokens, submit.was_owner)
        if submit.output_token_ids and not submit.was_owner:
            reading.announce()  # it doesn't know that it is the owner now
        return stream

    def join(self, stream: Stream, frontend: Frontend, submit: Submit) -> None:
        """A Submit of a request that is known: sent twice, sent anew, or sent by another."""
        is_untold = frontend.unsaid.get(submit.request_id) == TAKEN_OVER  # it was sent before
        if not stream.request.is_same(submit):
            frontend.tell(submit.request_id, CONFLICT)
        elif stream.ownership.fences(submit, was_owner=submit.was_owner or is_untold):
            frontend.tell(submit.request_id, TAKEN_OVER)
        else:
            if stream.ownership.submit(submit):  # another was faster after a restart
                self._follow(stream, None)
            num_held = len(submit.output_token_ids) // 4
            self._read(stream, frontend, num_held, submit.was_owner).announce()

    def attach(self, frontend: Frontend, attach: Attach) -> None:
        """A reader of a request that it did not submit."""
        stream = self.find(attach.request_id)
        if stream is None:
            frontend.tell(attach.request_id, NOT_FOUND)
            return
        ownership, former = stream.ownership, stream.owner
        if attach.takes_over and stream.sequence.finish is not None:
            ownership.join(frontend.frontend_id)
        elif attach.takes_over:
            if not ownership.take_over(frontend.frontend_id, attach.attempt):
                frontend.tell(attach.request_id, TAKEN_OVER)
                return
            if former is None or not former.is_owner:
                self._follow(stream, former)
        self._read(stream, frontend, attach.num_held).announce()

    def sync(self, frontend: Frontend, live: dict[bytes, int], sync: Sync, now: float) -> None:
        """The frontend says what it waits for, and how much of it it holds.

        Frames keep their order: what it lacks of those up to its `frame_number` is lost.
        """
        for request_id in [rid for rid in frontend.verdicts if rid not in live]:
            frontend.drop_verdict(request_id)
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
        """The frontend reads no further. The next in line for the request owns it; without one it
        waits for one if it is resumable."""
        frontend.drop_verdict(request_id)
        reading = frontend.readings.get(request_id)
        if reading is None:
            return
        stream, was_owner = reading.stream, reading.is_owner
        self._part(reading)
        if was_owner and stream.owner is not None:
            stream.owner.announce()
        elif was_owner and stream.readings and not stream.is_kept:
            self._abandon(stream)
        if not stream.readings:
            self._put_aside(stream, now)

    def expire(self, now: float) -> None:
        """Forgets what nobody has come for within the grace; of the finished, the oldest, too, when
        they are too much to keep."""
        overdue = [s for s in self._unread.values() if now - s.unread_since > self._grace_s]
        for stream in overdue:
            self._forget(stream)
        finished = [s for s in self._unread.values() if s.sequence.finish is not None]
        num_bytes = sum(stream.num_bytes for stream in finished)
        for number, stream in enumerate(finished):
            if num_bytes <= MAX_KEPT_BYTES and len(finished) - number <= MAX_KEPT:
                return
            num_bytes -= stream.num_bytes
            self._forget(stream)

    def _read(
        self, stream: Stream, frontend: Frontend, num_held: int, was_owner: bool = False
    ) -> Reading:
        former = frontend.readings.get(stream.request_id)
        if former is not None and former.stream is not stream:
            self._part(former)
        reading = Reading(stream, frontend, num_held, was_owner)
        stream.readings[frontend.frontend_id] = reading
        frontend.readings[stream.request_id] = reading
        frontend.news[stream.request_id] = reading
        frontend.drop_verdict(stream.request_id)
        self._unread.pop(stream.request_id, None)
        return reading

    def _part(self, reading: Reading) -> None:
        stream, frontend = reading.stream, reading.frontend
        stream.ownership.leave(frontend.frontend_id)
        del stream.readings[frontend.frontend_id]
        del frontend.readings[stream.request_id]
        frontend.news.pop(stream.request_id, None)
        frontend.queued.pop(stream.request_id, None)

    def _follow(self, stream: Stream, former: Reading | None) -> None:
        """Another owns the stream now, and all have to know; the `former` owner and who was one
        under another worker read no more."""
        for reading in [*stream.readings.values()]:
            is_former = reading is former or reading.was_owner
            if is_former and not reading.is_owner:
                self._part(reading)
                reading.frontend.tell(stream.request_id, TAKEN_OVER)
            else:
                reading.announce()

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
        self._abandon(stream)

    def _abandon(self, stream: Stream) -> None:
        if stream.sequence.finish is None:
            self.abandoned.append(stream.sequence)
