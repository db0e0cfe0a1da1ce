"""What must be true of every caller's stream after every turn of the worker."""

from __future__ import annotations

from chairlift.frontend.connection import TICK_S
from chairlift.frontend.protocol import (
    DEADLINE_MARGIN_S,
)
from chairlift.worker import publisher
from chairlift.worker.intake import EXPIRY_INTERVAL_S
from chairlift.worker.publisher import HEARTBEAT_S
from chairlift.worker.stream import LEASE_S, UNSUBSCRIBED_LEASE_S, Frontend, Reading, Stream

from .books import Books, check_books
from .faults import Faults
from .frontend import Opening, SimulatedFrontend
from .host import WorkerHost
from .network import NEVER, Pipe
from .oracle import Oracle
from .patience import SLACK_S, Patience
from .violation import Violation
from .worker import SimulatedWorker

THOROUGH_EVERY = 16  # turns
GREETING_S = 0.5  # until neither side asks the other for what it has sent already


class Watch:
    """Looks into the worker after each of its turns."""

    def __init__(self, host: WorkerHost, oracle: Oracle, faults: Faults) -> None:
        self._host = host
        self._oracle = oracle
        self._patience = Patience.of(faults)
        self._grace_s = faults.grace_s
        self._core: SimulatedWorker | None = None
        self._books: Books | None = None

    def look(self, now: float) -> None:
        core = self._host.core
        assert core is not None, "a turn needs a worker"
        if self._books is None or core is not self._core:
            if self._books is not None:
                self._books.close()
            self._books = self._begin(core)
        for frontend in self._host.frontends:
            record = core.publisher._frontends.get(frontend.frontend_id)
            self._note_lapse(frontend, now)
            if record is not None:
                self._check_lease(frontend, record, now)
                self._check_window(frontend, record)
            if not frontend.is_dead:
                self._check_openings(frontend, record, now)
        self._books.check_cancelled()
        self._books.check_streams(now)
        if self._host.num_turns % THOROUGH_EVERY == 0:
            check_books(core)

    @property
    def _epoch(self) -> int:
        assert self._core is not None, "a look needs a worker"
        return self._core.epoch

    def _begin(self, core: SimulatedWorker) -> Books:
        self._core = core
        for frontend in self._host.frontends:
            for opening in frontend.openings.values():
                opening.reading, opening.is_owner = None, False
                opening.unknown_since = opening.behind_since = None
                opening.unowned_since = opening.unaware_since = None
                opening.owned_since = NEVER
        return Books(core, self._oracle, self._grace_s)

    def _note_lapse(self, frontend: SimulatedFrontend, now: float) -> None:
        since = frontend.unsubscribed_at
        is_silent = now - frontend.last_heard > LEASE_S
        if is_silent or (since is not None and now - since > UNSUBSCRIBED_LEASE_S):
            frontend.lapsed_at = now

    def _check_lease(self, frontend: SimulatedFrontend, record: Frontend, now: float) -> None:
        """Who is gone holds nothing."""
        silent_s = now - frontend.last_heard - LEASE_S
        if frontend.unsubscribed_at is not None:  # by the record: a message makes another
            silent_s = max(silent_s, now - record.unsubscribed_at - UNSUBSCRIBED_LEASE_S)
        if record.readings and silent_s > EXPIRY_INTERVAL_S + SLACK_S:
            raise Violation("who is gone reads nothing", f"{frontend.name}, {silent_s:.2f} s")

    def _check_window(self, frontend: SimulatedFrontend, record: Frontend) -> None:
        """Unread frames are bounded."""
        is_met = frontend.epoch == self._host.core.epoch if self._host.core else False
        num_read = frontend.protocol._frame_number if is_met else 0
        if record.frame_number - num_read > publisher.MAX_UNACKNOWLEDGED_FRAMES:
            details = f"{record.frame_number - num_read} for {frontend.name}"
            raise Violation("unread frames are bounded", details)

    def _calm_since(self, frontend: SimulatedFrontend, now: float) -> float:
        """Since when nothing keeps this frontend and the worker from speaking."""
        pipes = (frontend.requests, frontend.frames)
        if not frontend.is_connected or frontend.frozen_until > now:
            return NEVER
        disturbed = [max(pipe.opened_at, pipe.held_until) for pipe in pipes]
        return max(*disturbed, frontend.frozen_until, self._host.calm_since)

    def _check_openings(
        self, frontend: SimulatedFrontend, record: Frontend | None, now: float
    ) -> None:
        calm_since = self._calm_since(frontend, now)
        readings = record.readings if record else {}
        verdicts = record.verdicts if record else {}
        for opening in frontend.openings.values():
            reading = readings.get(opening.request_id)
            verdict = verdicts.get(opening.request_id)
            if verdict is not None and verdict.code == "taken_over":
                self._note_fence(opening)
            if reading is None:
                opening.is_owner = False
                opening.unowned_since = opening.unaware_since = None
                self._check_drop(opening, verdict is not None, now)
                self._check_known(opening, verdict is not None, calm_since, now)
            else:
                self._check_pointer(opening, reading, now)
                self._check_news(opening, reading, calm_since, now)
                self._check_owner(opening, reading, calm_since, now)
                self._check_awareness(opening, reading, calm_since, now)
                self._check_fence(opening, reading)
            opening.reading = reading if opening.is_asked else None
            self._check_ttl(opening, reading, calm_since, now)
        for request_id, reading in readings.items():
            if request_id not in frontend.openings:
                self._check_ghost(frontend, reading, calm_since, now)

    def _check_drop(self, opening: Opening, has_verdict: bool, now: float) -> None:
        """The worker forgets nobody who is there."""
        if opening.reading is None or has_verdict:
            return
        if opening.frontend.lapsed_at < now:
            raise Violation("nobody is forgotten who is there", f"{opening}")

    def _check_known(
        self, opening: Opening, has_verdict: bool, calm_since: float, now: float
    ) -> None:
        """Soon after a restart, a reset, a lapse, a loss the worker knows the stream again."""
        patience, frontend = self._patience, opening.frontend
        opening.behind_since = None
        if opening.unknown_since is None:
            opening.unknown_since = max(now, opening.opened_at)
        is_known_worker = frontend.greeted_at < frontend.frames.opened_at
        has_lapsed = frontend.lapsed_at > calm_since - HEARTBEAT_S - SLACK_S
        is_asked_anew = is_known_worker or has_lapsed or has_verdict
        wait_s = patience.tail_s if is_asked_anew else 3 * patience.message_s
        wait_s += 0.1 * len(frontend.openings) * patience.message_s
        limit = max(
            max(opening.unknown_since, calm_since) + wait_s,
            _lost_at(frontend.frames, frontend) + 2 * patience.tail_s,
            _lost_at(frontend.requests, frontend) + patience.sync_s,
        )
        if opening.kind != "submit" and now < opening.patient_until + patience.sync_s:
            limit = NEVER
        if now > limit:
            details = f"{opening} for {now - opening.unknown_since:.3f} s"
            raise Violation("what is lost is asked for again in time", details)

    def _check_pointer(self, opening: Opening, reading: Reading, now: float) -> None:
        """Where nothing was lost nothing is sent again."""
        opening.unknown_since = None
        frontend = opening.frontend
        if reading is not opening.reading:
            opening.known_since = now
        elif reading.num_sent < opening.num_sent and _is_pristine(opening, self._host.calm_since):
            details = f"{frontend.name}: from {opening.num_sent} back to {reading.num_sent}"
            raise Violation("what wasn't lost isn't sent again", details)
        opening.num_sent = reading.num_sent

    def _check_news(
        self, opening: Opening, reading: Reading, calm_since: float, now: float
    ) -> None:
        """Tokens and ends arrive in time."""
        sequence = reading.stream.sequence  # what lacks its log probabilities is no news yet
        num_made = sequence.num_ready_tokens + (sequence.finish is not None)
        if num_made <= opening.num_tokens:
            opening.behind_since = None
        elif opening.behind_since is None or not opening.num_tokens < opening.awaited <= num_made:
            opening.behind_since, opening.awaited = now, num_made
        elif now > self._news_limit(opening, calm_since):
            late_s = now - opening.behind_since
            details = f"{opening} waits {late_s:.3f} s for {opening.awaited}"
            raise Violation("news arrives in time", details)

    def _news_limit(self, opening: Opening, calm_since: float) -> float:
        patience, frontend = self._patience, opening.frontend
        since = opening.behind_since or 0.0
        many_s = len(frontend.openings) * patience.message_s / 2  # more than a frame holds
        lost_at, shown_at = _lost_at(frontend.frames, frontend), frontend.frames.shown_at
        is_shown = calm_since < lost_at and since <= lost_at and len(shown_at) == 2
        if is_shown and _lost_at(frontend.requests, frontend) < since:
            return max(shown_at[1] + patience.shown_s, since + patience.news_s) + many_s
        return many_s + max(
            since + patience.news_s,
            calm_since + patience.tail_s,
            lost_at + patience.tail_s,
            _lost_at(frontend.requests, frontend) + patience.sync_s,
        )

    def _check_owner(
        self, opening: Opening, reading: Reading, calm_since: float, now: float
    ) -> None:
        """Who takes a running request over owns it."""
        stream = reading.stream
        is_owner = reading.is_owner
        is_over = is_owner or stream.sequence.finish is not None
        if opening.kind != "take over" or is_over or opening.has_owned:
            is_another = opening.owned_since < NEVER and opening.owned is not stream
            if is_owner and (is_another or not opening.has_owned):
                opening.has_owned = True  # after a restart any of those who may is it
                opening.owned_since, opening.owned = now, stream
            opening.unowned_since = None
            return
        if opening.unowned_since is None:
            opening.unowned_since = now
        patience, frontend = self._patience, opening.frontend
        limit = max(
            max(opening.unowned_since, calm_since) + 3 * patience.message_s,
            _lost_at(frontend.requests, frontend) + patience.sync_s,
            _lost_at(frontend.frames, frontend) + patience.sync_s,
        )
        if now > limit:
            raise Violation("who takes over is the owner", f"{opening}")

    def _check_awareness(
        self, opening: Opening, reading: Reading, calm_since: float, now: float
    ) -> None:
        """Who owns a running request is told so."""
        frontend = opening.frontend
        is_told = frontend.protocol._requests[opening.request_id].is_owner
        is_running = reading.stream.sequence.finish is None
        is_lost = _lost_at(frontend.frames, frontend) > float("-inf")
        if is_told or is_lost or not is_running or not reading.is_owner:
            opening.unaware_since = None
            return
        if opening.unaware_since is None:
            opening.unaware_since = now
        many_s = len(frontend.openings) * self._patience.message_s / 2
        limit = max(opening.unaware_since, calm_since) + self._patience.tail_s + many_s
        if now > limit:
            raise Violation("who owns a request knows it", f"{opening}")

    def _note_fence(self, opening: Opening) -> None:
        protocol = opening.frontend.protocol
        is_owner = protocol._requests[opening.request_id].is_owner
        opening.is_fenced, opening.fenced_in = True, self._epoch
        opening.knew_it_owned = is_owner and opening.num_tokens > 0 and not protocol.outgoing

    def _check_fence(self, opening: Opening, reading: Reading) -> None:
        """Who was taken over reads no more, neither beside the new owner nor after a restart."""
        stream = reading.stream
        was_owner = opening.is_owner
        opening.is_owner = opening.is_asked and reading.is_owner
        if opening.is_owner and self._has_only_watched(opening):
            raise Violation("who watches owns nothing", f"{opening}")
        is_former = opening.knew_it_owned and opening.fenced_in != self._epoch
        opening.is_fenced &= reading.was_owner or is_former  # else it is a new reader
        if stream.sequence.finish is not None:
            return
        # without tokens nobody can say that he owned what the worker has forgotten
        is_new = not reading.was_owner and stream.request_id in self._oracle.forgotten
        is_demoted = was_owner and not reading.is_owner and not is_new
        is_back = opening.is_fenced and not reading.is_owner
        if is_demoted or (is_back and self._is_taken(opening, stream)):
            raise Violation("who was taken over is fenced off", f"{opening}")

    def _has_only_watched(self, opening: Opening) -> bool:
        openings = self._oracle.openings[opening.request_id]
        return all(o.kind == "watch" for o in openings if o.frontend is opening.frontend)

    def _is_taken(self, former: Opening, stream: Stream) -> bool:
        """Whether the owner is one that has taken it over, and can know the generation."""
        owner_id = stream.ownership.owner_id
        return any(
            opening.kind == "take over"
            and opening.frontend.frontend_id == owner_id
            and opening.is_live
            and former.fenced_in in {self._epoch, *opening.told_in}
            for opening in self._oracle.openings[stream.request_id]
        )

    def _check_ttl(
        self, opening: Opening, reading: Reading | None, calm_since: float, now: float
    ) -> None:
        """Nothing outlives its time: by the worker's word, or else the frontend's own."""
        deadline = opening.deadline
        frontend = opening.frontend
        disturbed_at = max(calm_since, frontend.requests.lost_at, frontend.greeted_at)
        if now < deadline or disturbed_at >= opening.opened_at:
            return
        is_over = now > deadline + DEADLINE_MARGIN_S + TICK_S + SLACK_S
        is_computed = reading is not None and reading.stream.sequence.finish is None
        is_computed &= now > deadline + EXPIRY_INTERVAL_S + 3 * self._patience.message_s
        if is_over or is_computed:
            raise Violation("nothing outlives its time", f"{now - deadline:.3f} s")

    def _check_ghost(
        self, frontend: SimulatedFrontend, reading: Reading, calm_since: float, now: float
    ) -> None:
        """Who has left, or has all, is soon no reader any more; what an owner cancelled ends."""
        request_id = reading.stream.request_id
        openings = self._oracle.openings[request_id]
        last = next(o for o in reversed(openings) if o.frontend is frontend)
        patience, requests = self._patience, frontend.requests
        is_farewell = last.farewell in ("cancel", "detach")
        if is_farewell and not last.is_asked:
            return
        is_said = is_farewell and last.ended_at > frontend.greeted_at
        limit = max(
            max(last.ended_at, calm_since) + (patience.message_s if is_said else patience.sync_s),
            _lost_at(requests, frontend) + patience.sync_s,
            _lost_at(frontend.frames, frontend) + patience.sync_s,
        )
        if requests.num_lost - last.num_lost_before > is_farewell:  # nobody answers to those
            limit = NEVER
        if now > limit:
            details = f"{last}: {last.farewell or 'all received'}"
            raise Violation("who leaves is let go in time", details)


def _lost_at(pipe: Pipe, frontend: SimulatedFrontend) -> float:
    """When that was which no greeting has mended since."""
    greeted_from = frontend.frames.opened_at
    is_mended = max(pipe.lost_at, frontend.frames.lost_at) < greeted_from
    return float("-inf") if is_mended else pipe.lost_at


def _is_pristine(opening: Opening, calm_since: float) -> bool:
    """Whether nothing was lost, and nobody had to ask again, since the worker knows of it."""
    frontend = opening.frontend
    frames = frontend.frames
    greeted_at = max(frontend.greeting_sent_at, frontend.greeted_at)
    attached_at = max(frontend.attached_at, calm_since)  # rows may precede the answer
    disturbed = (frames.lost_at, greeted_at, attached_at)
    is_asked_twice = frames.doubling or frontend.requests.num_lost or frontend.lapsed_at > 0
    return not is_asked_twice and max(disturbed) + GREETING_S < opening.known_since
