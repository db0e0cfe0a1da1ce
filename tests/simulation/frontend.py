"""A frontend process: a real core, its connections, and what its callers were promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from chairlift.frontend.connection import SEND_RETRY_S, TICK_S
from chairlift.frontend.protocol import FrontendProtocol, News
from chairlift.shared.codec import decode_request
from chairlift.shared.messages import Finish, Sync

from .asks import Ask
from .network import NEVER, Pipes
from .violation import Violation

Kind = Literal["submit", "take over", "watch"]
Farewell = Literal["", "cancel", "detach", "death"]


@dataclass(eq=False)
class Opening:
    """One caller's hold on a stream, and how much of it has come."""

    frontend: SimulatedFrontend
    request_id: bytes
    kind: Kind
    opened_at: float
    ask: Ask | None  # not known before the worker has told whose request it is
    num_tokens: int = 0
    num_characters: int = 0
    finish: Finish | None = None
    farewell: Farewell = ""
    ended_at: float = NEVER
    num_lost_before: int = 0  # requests that the frontend had lost when it ended
    deadline: float = NEVER  # that it was submitted with
    patient_until: float = 0.0  # after a restart, for who didn't submit it
    num_sent_before: int = 0  # requests that the frontend had sent with it
    reading: object = None  # the worker's, as it was last seen
    num_sent: int = 0  # ... and its pointer
    known_since: float = 0.0  # to the worker
    unknown_since: float | None = None
    has_owned: bool = False
    owned_since: float = NEVER
    owned: object = None  # the worker's stream, of which it was the owner then
    is_owner: bool = False  # by the worker's books
    is_joined: bool = False
    is_told_so: bool = False
    told_in: set[int] = field(default_factory=set)  # epochs
    is_fenced: bool = False
    fenced_in: int = 0  # epoch
    knew_it_owned: bool = False  # when it was fenced off, and will say so
    unowned_since: float | None = None
    unaware_since: float | None = None  # that it is the owner
    behind_since: float | None = None
    awaited: int = 0  # tokens and end that there were when it fell behind

    def __str__(self) -> str:
        return f"{self.frontend}, {self.kind} {self.request_id.hex()[:6]}"

    @property
    def is_asked(self) -> bool:
        """Whether what was said last of it is no longer on its way."""
        return self.frontend.requests.num_gone >= self.num_sent_before

    @property
    def is_out_of_time(self) -> bool:
        return self.finish is not None and self.finish.code == "deadline_exceeded"

    @property
    def is_live(self) -> bool:
        return self.ended_at == NEVER


class Listener(Protocol):
    """Who hears what comes of it, and who has to know of connections."""

    def heard(self, frontend: SimulatedFrontend, item: News) -> None: ...

    def subscribed(self, frontend: SimulatedFrontend) -> None: ...


class SimulatedFrontend:
    """Its callers open streams and leave them."""

    def __init__(
        self,
        name: str,
        frontend_id: bytes,
        pipes: Pipes,
        listener: Listener,
        now: float,
    ) -> None:
        self.name = name
        self.protocol = FrontendProtocol(frontend_id, now)
        self.requests, self.frames = pipes.requests, pipes.frames
        self.openings: dict[bytes, Opening] = {}  # the live ones
        self.frozen_until = 0.0
        self.is_dead = False
        self.attached_at = float("-inf")
        self.greeted_at = now
        self.last_greeting: bytes | None = None
        self.greeting_sent_at = now
        self.stale: list[bytes] = []  # frames of a former worker that are still to come
        self.last_heard = now  # by the worker
        self.unsubscribed_at: float | None = None  # ... as it knows
        self.has_come_back = False  # to what the worker may know of already
        self.lapsed_at = float("-inf")  # when it last had to take this frontend for gone
        self._listener = listener
        self._opened: set[bytes] = set()
        self._next_tick = now
        self._retry_at = NEVER

    def __str__(self) -> str:
        return self.name

    @property
    def frontend_id(self) -> bytes:
        return self.protocol.frontend_id

    @property
    def epoch(self) -> int | None:
        """Of the worker that it has met."""
        return self.protocol.greeting.epoch if self.protocol.greeting else None

    @property
    def is_connected(self) -> bool:
        return self.requests.is_open and self.frames.is_open

    @property
    def due(self) -> float:
        if self.is_dead:
            return NEVER
        soonest = min(self._next_tick, self._retry_at, self.frames.due, self.requests.opens_at)
        return max(soonest, self.frozen_until)

    def open(self, kind: Kind, request_id: bytes, ask: Ask | None, now: float) -> Opening:
        """As `frontend.client` does, for what isn't read here already."""
        opening = Opening(self, request_id, kind, now, ask)
        self.has_come_back |= kind != "submit" or request_id in self._opened
        self._opened.add(request_id)
        if kind == "submit" and ask is not None and ask.options.ttl_s:
            opening.deadline = now + ask.options.ttl_s
        self.openings[request_id] = opening
        if kind == "submit":
            assert ask is not None, "nobody submits what he doesn't know"
            self.protocol.submit(ask.prompt, ask.params, ask.options, now)
        else:
            self.attached_at = now
            self.protocol.attach(request_id, now, takes_over=kind == "take over")
        self._ask(opening, now)
        return opening

    def take_over(self, opening: Opening, now: float) -> None:
        """What is read here already; nothing if it is ours."""
        if self.protocol._requests[opening.request_id].is_owner:
            return
        self.has_come_back = True
        opening.kind, opening.has_owned, opening.owned_since = "take over", False, NEVER
        self.protocol.take_over(opening.request_id, now)
        self._ask(opening, now)

    def _ask(self, opening: Opening, now: float) -> None:
        self.flush(now)
        opening.num_sent_before = self.requests.num_accepted + len(self.protocol.outgoing)

    def leave(self, request_id: bytes, farewell: Farewell, now: float) -> None:
        part = self.protocol.cancel if farewell == "cancel" else self.protocol.detach
        part(request_id)
        opening = self.openings[request_id]
        self._end(opening, farewell, now)
        self._ask(opening, now)

    def finish(self, opening: Opening, finish: Finish, now: float) -> None:
        opening.finish = finish
        self._end(opening, "", now)

    def die(self, now: float) -> None:
        for opening in [*self.openings.values()]:
            self._end(opening, "death", now)
        self.is_dead = True

    def act(self, now: float) -> None:
        """All that is due."""
        for pipe in (self.requests, self.frames):
            if now >= pipe.opens_at:
                pipe.open(now)
                if pipe is self.frames:
                    self._listener.subscribed(self)
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            self._hear(self.protocol.tick(now))
        for data in self.frames.take(now):
            self._hear(self.protocol.receive(data, now))
        self.flush(now)

    def flush(self, now: float) -> None:
        outgoing = self.protocol.outgoing
        while outgoing and self.requests.send(outgoing[0], now):
            self._check_gap(outgoing.popleft())
        self._retry_at = now + SEND_RETRY_S if outgoing and self.requests.is_open else NEVER

    def _check_gap(self, data: bytes) -> None:
        """Where nothing was lost, and nobody came back to what he had left, all comes in order."""
        if self.has_come_back or not self.frames.is_pristine or b"sync" not in data[:8]:
            return
        message = decode_request(data)
        if isinstance(message, Sync) and message.has_gap:
            raise Violation("where nothing is lost there is no gap", f"{self}")

    def receive_stale(self, now: float) -> None:
        """What took a longer way than the new worker's greeting."""
        stale, self.stale = self.stale, []
        for data in stale:
            self._hear(self.protocol.receive(data, now))

    def _hear(self, news: list[News]) -> None:
        for item in news:
            self._listener.heard(self, item)

    def _end(self, opening: Opening, farewell: Farewell, now: float) -> None:
        opening.farewell, opening.ended_at = farewell, now
        opening.num_lost_before = self.requests.num_lost
        del self.openings[opening.request_id]
