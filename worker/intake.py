"""Frontends' messages to the engine: decoded, checked again, carried out. Sans-IO.

Trusts no frontend: what is malformed is counted and dropped, what can't be served is refused with
the reason, and neither touches anybody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog

from ..shared.codec import Request, decode_request
from ..shared.errors import ProtocolError
from ..shared.finishes import CANCELLED, OUT_OF_TIME
from ..shared.logs import short_hash
from ..shared.messages import (
    WATCH_LEASE_S,
    Attach,
    Cancel,
    Detach,
    Finish,
    Submit,
    Sync,
    Watch,
    unpack_live,
    unpack_token_ids,
)
from ..shared.tokenizer import Tokenizer
from .admission import Admission, Limits, failure, in_seconds
from .detokenizer import Detokenizer
from .engine import Engine
from .pool import Pool
from .publisher import Publisher
from .sequence import Sequence
from .stream import Frontend, Stream
from .streams import Streams

log = structlog.get_logger(__name__)

COMPLAINT_INTERVAL_S = 1.0
EXPIRY_INTERVAL_S = 0.1
QUEUE_NEWS_INTERVAL_S = 1.0


class Intake:
    """Turns messages into calls on engine, streams and publisher, which it does not own."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        streams: Streams,
        tokenizer: Tokenizer,
        admission: Admission,
    ) -> None:
        self.num_malformed = 0
        self.num_refused: Counter[str] = Counter()  # that never ran, by code
        self._admission = admission
        self._last_complaint = self._last_expiry = float("-inf")
        self._engine = engine
        self._publisher = publisher
        self._streams = streams
        self._tokenizer = tokenizer

    def receive(self, messages: Iterable[bytes], now: float) -> None:
        """Carries out what has come, and ends what has lasted too long."""
        for data in messages:
            try:
                self._dispatch(decode_request(data), now)
            except (ProtocolError, ValueError) as error:
                self._complain(error, now)
        if now - self._last_expiry >= EXPIRY_INTERVAL_S:
            self._last_expiry = now
            self._expire(now)
        while self._streams.abandoned:
            self.end(self._streams.abandoned.pop(), CANCELLED)

    def notify(self, sequences: Iterable[Sequence]) -> None:
        """The sequences have new tokens or have ended."""
        for sequence in sequences:
            stream = self._streams.find(sequence.request_id)
            if stream is not None:
                self._publisher.notify(stream)

    def end(self, sequence: Sequence, finish: Finish) -> None:
        """Before its time; whoever reads it is told."""
        self._engine.end(sequence, finish)
        self.notify([sequence])

    def end_all(self, finish: Finish) -> None:
        for stream in self._streams:
            if stream.sequence.finish is None:
                self.end(stream.sequence, finish)

    @property
    def limits(self) -> Limits:
        return self._admission.limits

    @property
    def num_orphans(self) -> int:
        return self._streams.num_orphans

    def _complain(self, error: Exception, now: float) -> None:
        """Once a second: whoever sends garbage must not fill the log as well."""
        self.num_malformed += 1
        if now - self._last_complaint >= COMPLAINT_INTERVAL_S:
            self._last_complaint = now
            log.warning("malformed message dropped", why=str(error), so_far=self.num_malformed)

    def _dispatch(self, message: Request, now: float) -> None:
        frontend = self._publisher.heard(message.frontend_id, now)
        match message:
            case Submit():
                self._submit(message, frontend, now)
            case Attach():
                self._streams.attach(frontend, message)
            case Detach():
                self._streams.leave(frontend, message.request_id, now)
            case Cancel():
                self._cancel(message, frontend, now)
            case Sync():
                self._sync(message, frontend, now)
            case Watch():
                frontend.watches_until = now + WATCH_LEASE_S

    def _submit(self, submit: Submit, frontend: Frontend, now: float) -> None:
        """The same id twice is one request."""
        stream = self._streams.find(submit.request_id)
        if stream is not None and not stream.request.is_same(submit):
            self._streams.leave(frontend, submit.request_id, now)  # it asks for something else now
            stream = self._streams.find(submit.request_id)
        if stream is not None and not stream.has_failed:
            self._streams.join(stream, frontend, submit)
            return
        finish = self._refusal(submit) or self._start(submit, frontend, now)
        if finish is not None:
            self.num_refused[finish.code] += 1
            frontend.tell(submit.request_id, finish)
        log.debug("request", request=short_hash(submit.request_id), refused=finish)

    def _refusal(self, submit: Submit) -> Finish | None:
        finish = self._admission.refusal(submit)
        if finish is not None:
            return finish
        if self._publisher.state == "draining" and not submit.output_token_ids:
            return failure("draining", "the worker is shutting down", retry_after_ms=5_000)
        return self._admission.overload(submit, self._engine)

    def _start(self, submit: Submit, frontend: Frontend, now: float) -> Finish | None:
        """The request's stream is open afterwards, unless something is wrong with it."""
        prompt = unpack_token_ids(submit.prompt_token_ids)
        output = unpack_token_ids(submit.output_token_ids)
        try:
            detokenizer = Detokenizer(
                self._tokenizer.backend,
                prompt,
                submit.params.stop,
                skip_special_tokens=submit.params.skip_special_tokens,
                include_stop_str_in_output=submit.params.include_stop_str_in_output,
            )
            sequence = Sequence(
                submit.request_id, prompt, submit.params, detokenizer, submit.cache_salt
            )
            sequence.is_suspect = self._admission.is_suspect(submit.request_id)
            sequence.priority = submit.priority
            sequence.tenant = submit.tenant or submit.frontend_id
            sequence.pool = Pool(submit.pooling) if submit.pooling else None
            self._engine.add(sequence, output)
        except Exception:
            log.exception("a request can't be started", request=short_hash(submit.request_id))
            return failure("internal_error", "the worker could not start this request")
        stream = self._streams.open(frontend, submit, sequence)
        if submit.ttl_ms:
            stream.deadline = now + submit.ttl_ms / 1000
        if not output:
            stream.queue_deadline = now + self.limits.queue_timeout_s
        return None

    def _cancel(self, cancel: Cancel, frontend: Frontend, now: float) -> None:
        reading = frontend.readings.get(cancel.request_id)
        if reading is not None and reading.is_owner:
            self.end(reading.stream.sequence, CANCELLED)
        self._streams.leave(frontend, cancel.request_id, now)

    def _sync(self, sync: Sync, frontend: Frontend, now: float) -> None:
        live = None if sync.live is None else unpack_live(sync.live)
        if self._publisher.acknowledge(frontend, sync) and live is not None:
            self._streams.sync(frontend, live, sync, now)

    def _expire(self, now: float) -> None:
        for frontend in self._publisher.expire(now):
            for request_id in [*frontend.readings]:
                self._streams.leave(frontend, request_id, now)
        self._streams.expire(now)
        for stream in self._streams:
            finish = self._overdue(stream, now)
            if finish is not None:
                self.num_refused[finish.code] += stream.sequence.waits_to_begin
                self.end(stream.sequence, finish)
            elif stream.sequence.waits_to_begin:
                self._attend(stream, now)

    def _attend(self, stream: Stream, now: float) -> None:
        """It waits: time may run short for it, and it may want to know where it stands."""
        if stream.is_short_of_time(now):
            self._engine.hurry(stream.sequence)
        if stream.request.wants_queue_news and now >= stream.next_queue_news:
            stream.next_queue_news = now + QUEUE_NEWS_INTERVAL_S
            stream.tell_place(self._engine.queue_place(stream.sequence))

    def _overdue(self, stream: Stream, now: float) -> Finish | None:
        sequence = stream.sequence
        if sequence.finish is not None or now < min(stream.deadline, stream.queue_deadline):
            return None
        if now >= stream.deadline:
            return OUT_OF_TIME
        if not sequence.waits_to_begin:
            stream.queue_deadline = float("inf")
            return None
        place = self._engine.queue_place(sequence)
        message = (
            f"no place for the request within {self.limits.queue_timeout_s:g} s: {place.num_ahead} "
            f"are still ahead of it, which takes about {in_seconds(place)}"
        )
        return failure("queue_timeout", message, self._engine.estimated_wait_ms(), place)
