"""What callers are promised, checked at every piece of news that they get."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

from chairlift.frontend.protocol import REATTACH_PATIENCE_S, SYNC_INTERVAL_S, News, Opened, Output
from chairlift.shared.logprobs import TokenLogprob, unpack_logprobs
from chairlift.shared.messages import Finish
from chairlift.worker.scoring import score

from .asks import Asks
from .frontend import Opening, SimulatedFrontend
from .network import NEVER
from .violation import Violation
from .worker import logits_of

NATURAL = ("stop", "length")
OVERLAP_S = 5.0  # what was sent before somebody left may arrive as late as that after it
CLOCK_S = 0.002  # times to live travel in milliseconds


def _logprobs(token_ids: list[int], start: int, num_top: int) -> list[TokenLogprob]:
    """Of tokens from index `start` of their sequence on."""
    records = [score(logits_of(t, start + i), t, num_top) for i, t in enumerate(token_ids)]
    return unpack_logprobs(b"".join(records), num_top)


class Oracle:
    """Knows every token of every answer, and who may be told what in the place of it."""

    def __init__(self, asks: Asks, note: Callable[..., None]) -> None:
        self.openings: dict[bytes, list[Opening]] = {}  # all there ever were, by request id
        self.absent_at: dict[bytes, float] = {}  # when the worker last didn't know an id
        self.forgotten: set[bytes] = set()  # ids of which a stream was lost with its generation
        self.cancelled: list[Opening] = []  # and the worker may not know yet
        self.num_ended: dict[str, int] = {}
        self.num_places = 0
        self._asks = asks
        self._note = note

    def add(self, opening: Opening) -> None:
        self.openings.setdefault(opening.request_id, []).append(opening)

    def hear(self, frontend: SimulatedFrontend, item: News, now: float) -> None:
        if isinstance(item, Opened):
            self._take_opened(frontend, item)
        elif isinstance(item, Output):
            self._take_output(frontend, item, now)

    def _take_opened(self, frontend: SimulatedFrontend, item: Opened) -> None:
        opening = self._opening(frontend, item.request_id)
        ask = self._asks.by_context.get(item.context)
        if ask is None or ask.request_id != item.request_id:
            raise Violation("the context is the request's own", repr(item.context))
        if opening.ask is not None and opening.ask is not ask:
            raise Violation("nobody reads another's answer", f"{item.context!r}")
        opening.ask, opening.patient_until, opening.is_joined = ask, 0.0, True
        request = frontend.protocol._requests.get(item.request_id)
        opening.is_told_so = request is not None and request.is_owner
        if opening.is_told_so and frontend.epoch is not None:
            opening.told_in.add(frontend.epoch)

    def _take_output(self, frontend: SimulatedFrontend, item: Output, now: float) -> None:
        opening = self._opening(frontend, item.request_id)
        if item.queue is not None:
            self._check_place(opening, item)
        if item.token_ids or item.text:
            self._take_tokens(opening, item)
        if item.finish is not None:
            self._note("end", opening, item.finish.code or item.finish.reason)
            frontend.finish(opening, item.finish, now)
            name = item.finish.code or item.finish.reason
            self.num_ended[name] = self.num_ended.get(name, 0) + 1
            self._judge(opening, item.finish, now)

    def _opening(self, frontend: SimulatedFrontend, request_id: bytes) -> Opening:
        opening = frontend.openings.get(request_id)
        if opening is None:
            raise Violation("one end, and nothing after it", f"{frontend.name} hears more")
        return opening

    def _check_place(self, opening: Opening, item: Output) -> None:
        """Of the queue: who asked is told, before anything of its answer."""
        self.num_places += 1
        if opening.ask is None or not opening.ask.options.wants_queue_news:
            raise Violation("who asked hears of the queue, and nobody else", f"{opening}")
        if opening.num_tokens or item.token_ids or item.text or item.finish:
            raise Violation("what has begun is in no queue", f"{item}")

    def _take_tokens(self, opening: Opening, item: Output) -> None:
        if opening.ask is None:
            raise Violation("first it is told whose request it is", "tokens of nobody's")
        answer = opening.ask.answer
        start, end = opening.num_tokens, opening.num_tokens + len(item.token_ids)
        if item.token_ids != answer.token_ids[start:end]:
            details = f"{item.token_ids} at {start} of {answer.token_ids}"
            raise Violation("no token is lost, doubled or changed", details)
        self._check_logprobs(opening, item)
        opening.num_tokens = end
        start, text = opening.num_characters, answer.text
        opening.num_characters += len(item.text)
        if item.finish is not None and item.finish.reason not in NATURAL:  # nothing is held back
            text = self._asks.language.tokenizer.decode(answer.token_ids[:end])
        if item.text != text[start : opening.num_characters]:
            details = f"{item.text!r} at {start} of {text!r}"
            raise Violation("no character is lost, doubled or changed", details)

    def _check_logprobs(self, opening: Opening, item: Output) -> None:
        """Each token comes with its own. Only an answer that was all there already when a worker
        died may lack some."""
        assert opening.ask is not None, "looked at before"
        prompt, params = opening.ask.prompt, opening.ask.params
        if params.num_logprobs >= 0:
            start = len(prompt) + opening.num_tokens
            wanted = _logprobs(item.token_ids, start, params.num_logprobs)
            if item.finish is not None and len(item.logprobs) == len(wanted):
                wanted = [
                    p if isnan(p.logprob) else w for p, w in zip(item.logprobs, wanted, strict=True)
                ]
            if item.logprobs != wanted:
                details = f"{item.logprobs} instead of {wanted}"
                raise Violation("a token comes with its log probability", details)
        is_first = opening.num_tokens == 0 and item.token_ids
        if params.num_prompt_logprobs >= 0 and is_first:
            wanted = _logprobs(prompt[1:], 1, params.num_prompt_logprobs)
            is_missing = item.finish is not None and not item.prompt_logprobs
            if item.prompt_logprobs != wanted and not is_missing:
                raise Violation("the first comes with the prompt's", f"{item.prompt_logprobs}")

    def _judge(self, opening: Opening, finish: Finish, now: float) -> None:
        if finish.reason in NATURAL:
            self._check_whole(opening, finish)
            return
        judge = {
            "taken_over": self._may_be_taken_over,
            "cancelled": self._may_be_cancelled,
            "stream_not_found": self._may_be_missing,
            "request_id_conflict": self._may_conflict,
            "deadline_exceeded": self._may_be_late,
            "worker_crashed_on_request": self._may_be_condemned,
        }.get(finish.code)
        if judge is None or not judge(opening, now):
            name = finish.code or finish.reason
            raise Violation("every end has its reason", f"{opening} is told {name}")

    def _check_whole(self, opening: Opening, finish: Finish) -> None:
        ask = opening.ask
        if ask is None:
            raise Violation("first it is told whose request it is", "the end of nobody's")
        answer, got = ask.answer, (opening.num_tokens, opening.num_characters)
        if got != (len(answer.token_ids), len(answer.text)):
            wanted = (len(answer.token_ids), len(answer.text))
            raise Violation("an end means that all is there", f"{got} of {wanted}")
        if (finish.reason, finish.stop_reason) != (answer.reason, answer.stop_reason):
            raise Violation("the end is the right one", f"{finish} for {answer.reason}")

    def _may_be_taken_over(self, opening: Opening, now: float) -> bool:
        """By another frontend that wanted it, later; after a restart also by the owner before."""
        if self._has_only_read_along(opening):
            return False
        since = self._first_asked(opening)
        is_restarted = opening.frontend.greeted_at > since
        return any(
            other.ended_at + OVERLAP_S > since
            and (other.owned_since >= since or is_restarted or self._has_given_up(other))
            for other in self._others(opening)
            if other.kind == "take over"
        )

    @staticmethod
    def _has_given_up(taker: Opening) -> bool:
        """Told that there is no such stream, it may have sent its Attach once more before."""
        return taker.ended_at < NEVER

    def _has_only_read_along(self, opening: Opening) -> bool:
        """Whether it joined a request whose owners were there all the time, and who took it over
        did that under an earlier worker."""
        openings, others = self.openings[opening.request_id], self._others(opening)
        if opening.kind != "submit" or len(openings) > len(others) + 1:
            return False
        epoch = opening.frontend.epoch
        is_told = opening.is_joined and not opening.told_in and not opening.has_owned
        may_inherit = any(o.farewell or o.frontend.lapsed_at > 0 for o in openings)
        takers = [o for o in others if o.kind == "take over"]
        is_taken_now = any(not o.told_in - {epoch} for o in takers)
        return is_told and not may_inherit and not is_taken_now

    def _may_be_cancelled(self, opening: Opening, now: float) -> bool:
        """By its owner, when that one's time was over, or by its leaving what can't be resumed."""
        is_cancelled = any(
            (other.farewell == "cancel" and other.kind != "watch") or other.is_out_of_time
            for other in self.openings[opening.request_id]
        )
        owners = [o for o in self.openings[opening.request_id] if o.kind != "watch"]
        until = now if opening.kind == "watch" else opening.opened_at  # who may own inherits
        has_left = any(o.ended_at <= until or o.frontend.lapsed_at > 0 for o in owners)
        is_resumable = opening.ask is not None and opening.ask.options.is_resumable
        return is_cancelled or (has_left and not is_resumable)

    def _may_be_missing(self, opening: Opening, now: float) -> bool:
        """Who asks for what the worker doesn't know; after a restart only when nobody comes, or
        when something else is asked for under the id."""
        if self._may_conflict(opening, now):
            return True
        if opening.kind == "submit" or opening.is_told_so or opening.patient_until > now:
            return False
        return self.absent_at.get(opening.request_id, now) >= self._first_asked(opening)

    def _first_asked(self, opening: Opening) -> float:
        """An answer to an earlier question of the same frontend may still be on its way."""
        asked_at = opening.opened_at
        for earlier in reversed(self.openings[opening.request_id]):
            is_recent = earlier.ended_at + OVERLAP_S + SYNC_INTERVAL_S > asked_at
            if earlier.frontend is opening.frontend and is_recent:
                asked_at = min(asked_at, earlier.opened_at)
        return asked_at

    def _may_conflict(self, opening: Opening, now: float) -> bool:
        return len(self._asks.by_id.get(opening.request_id, ())) > 1

    def _may_be_late(self, opening: Opening, now: float) -> bool:
        deadlines = (other.deadline for other in self.openings[opening.request_id])
        return now + CLOCK_S >= min(deadlines)

    def _may_be_condemned(self, opening: Opening, now: float) -> bool:
        asks = self._asks.by_id[opening.request_id]
        is_unlucky = sum(ask.num_lone_hits for ask in asks) >= 3  # under one id
        return is_unlucky or any(ask.is_poison for ask in asks)

    def _others(self, opening: Opening) -> list[Opening]:
        """Other frontends' openings of the same request."""
        openings = self.openings[opening.request_id]
        return [other for other in openings if other.frontend is not opening.frontend]

    def greeted(self, frontend: SimulatedFrontend, now: float) -> None:
        """By another worker than before: its readers are patient for a while."""
        frontend.greeted_at = now
        for opening in frontend.openings.values():
            if opening.kind != "submit":
                opening.patient_until = now + REATTACH_PATIENCE_S
