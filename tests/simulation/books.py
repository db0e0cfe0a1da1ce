"""What must be true of the worker's books: its streams, sequences and blocks."""

from __future__ import annotations

from chairlift.worker.stream import Reading, Stream

from .oracle import Oracle
from .violation import Violation
from .worker import NUM_BLOCKS, SimulatedWorker


class Books:
    """One worker's, looked into after each of its turns."""

    def __init__(self, core: SimulatedWorker, oracle: Oracle, grace_s: float) -> None:
        self._core = core
        self._oracle = oracle
        self._grace_s = grace_s
        self._streams: dict[bytes, Stream] = {}  # as of the last look

    def check_cancelled(self) -> None:
        """What its owner cancels ends, resumable or not."""
        on_their_way = [o for o in self._oracle.cancelled if not o.is_asked]
        for opening in self._oracle.cancelled:
            reading, requests = opening.reading, opening.frontend.requests
            if opening in on_their_way or requests.num_lost > opening.num_lost_before:
                continue
            others = (o for o in self._oracle.openings[opening.request_id] if o is not opening)
            is_taken = any(o.kind == "take over" for o in others)
            if is_taken or not opening.is_owner or not isinstance(reading, Reading):
                continue
            stream = reading.stream
            is_here = self._core.streams.find(stream.request_id) is stream
            if is_here and stream.owner is None and stream.sequence.finish is None:
                raise Violation("what its owner cancels ends", f"{opening}")
        self._oracle.cancelled = on_their_way

    def check_streams(self, now: float) -> None:
        streams = {stream.request_id: stream for stream in self._core.streams}
        for request_id in self._oracle.openings:
            if request_id not in streams or request_id not in self._streams:
                self._oracle.absent_at[request_id] = now  # ... or until now
        for request_id, stream in self._streams.items():
            if streams.get(request_id) is not stream:
                self._oracle.forgotten.add(request_id)
                self._check_gone(stream, now)
        for stream in streams.values():
            if not stream.readings and now - stream.unread_since > self._grace_s + 0.2:
                raise Violation("nobody is waited for beyond the grace", f"{self._grace_s} s")
            if not stream.readings and not stream.request.is_resumable:
                raise Violation("what can't be resumed ends with its reader", "it goes on")
        self._streams = streams

    def close(self) -> None:
        """The worker died, and all that it knew is forgotten."""
        self._oracle.forgotten.update(self._streams)

    def _check_gone(self, stream: Stream, now: float) -> None:
        """What is resumable waits for the grace, unless it was cancelled or has failed."""
        finish = stream.sequence.finish
        is_dropped = finish is None or finish.code in ("", "cancelled")
        if not stream.request.is_resumable or not is_dropped:
            return
        openings = self._oracle.openings[stream.request_id]
        if any(o.farewell == "cancel" or o.is_out_of_time for o in openings):
            return
        was_unread = stream.unread_since > 0 and not stream.readings
        if not was_unread or now - stream.unread_since < self._grace_s:
            raise Violation("what is resumable waits for the grace", f"{finish}")


def check_books(core: SimulatedWorker) -> None:
    """Every sequence that runs or waits is a stream's, every block is free or a running one's."""
    scheduler = core.scheduler
    at_work = [*scheduler.running, *scheduler.waiting, *scheduler.suspects]
    wanted = [s.sequence for s in core.streams if s.sequence.finish is None]
    if len(at_work) != len(wanted) or set(map(id, at_work)) != set(map(id, wanted)):
        details = f"{len(at_work)} at work, {len(wanted)} wanted"
        raise Violation("what nobody wants is not computed", details)
    held = {block for sequence in at_work for block in sequence.block_table}
    if len(held) + core.blocks.num_free_blocks != NUM_BLOCKS:
        details = f"{len(held)} held, {core.blocks.num_free_blocks} free of {NUM_BLOCKS}"
        raise Violation("no block is leaked", details)
    for stream in core.streams:
        if not {*stream.ownership.line} <= stream.readings.keys():
            raise Violation("who may own a stream reads it", f"{stream.ownership}")
    if core.intake.num_malformed:
        raise Violation("nobody sends nonsense", f"{core.intake.num_malformed} messages")
