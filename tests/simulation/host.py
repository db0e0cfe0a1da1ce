"""The worker's process and its parent: it starts, is paused, dies, and starts again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from chairlift.worker.pulse import Pulse
from chairlift.worker.quarantine import Quarantine
from chairlift.worker.scheduler import Plan
from chairlift.worker.supervisor import MAX_PAUSE_S, STABLE_S, Restarts

from .abridged import abridged
from .asks import Ask, Asks
from .faults import Faults
from .frontend import SimulatedFrontend
from .network import NEVER
from .violation import Violation
from .worker import MAX_NUM_SEQS, Keeper, SimulatedWorker

TURN_S = 0.0005  # of the loop, when there is nothing to compute


class Killed(BaseException):
    """The worker dies in the midst of a step; no `except Exception` is in the way."""

    def __init__(self, *, by_chance: bool, violation: Violation | None = None) -> None:
        self.by_chance = by_chance
        self.violation = violation


class WorkerHost:
    """Owns the worker, while there is one, and does for it what loop and parent do."""

    def __init__(
        self, draw: random.Random, faults: Faults, asks: Asks, note: Callable[..., None]
    ) -> None:
        self.core: SimulatedWorker | None = None
        self.frontends: list[SimulatedFrontend] = []
        self.changes: deque[tuple[SimulatedFrontend, bool]] = deque()  # of subscriptions
        self.paused_until = 0.0
        self.calm_since = 0.0
        self.num_deaths = 0
        self.num_turns = 0
        self.dies_in_next_step = False
        self.is_verbose = False
        self.starts_at = 0.0
        self.after_turn: Callable[[float], None] = lambda now: None
        self._random = draw
        self._faults = faults
        self._asks = asks
        self._note = note
        self._now = 0.0
        self._free_at = 0.0
        self._last_turn = 0.0
        self._pulse = Pulse(MAX_NUM_SEQS)
        self._quarantine = Quarantine(self._pulse)
        self._restarts = Restarts()
        self._by_id: dict[bytes, SimulatedFrontend] = {}

    @property
    def due(self) -> float:
        if self.core is None:
            return self.starts_at
        soonest = 0.0
        if not self.changes and not self.core.scheduler.has_work:
            arrival = min(
                (f.requests.due for f in self.frontends if f.requests.is_open), default=NEVER
            )
            patience_s = self.core.publisher.patience_s
            soonest = min(self._last_turn + patience_s, arrival)
        return max(soonest, self._free_at, self.paused_until)

    def act(self, now: float) -> None:
        self._now = now
        if self.core is None:
            self._start(now)
        try:
            self._turn(now)
        except Killed as death:
            if death.violation is not None:
                raise death.violation from None
            self.die(now, by_chance=death.by_chance)

    def add(self, frontend: SimulatedFrontend, now: float) -> None:
        self.frontends.append(frontend)
        self._by_id[frontend.frontend_id] = frontend
        if self.core is not None:
            self._let_in(frontend, now)

    def forget(self, frontend: SimulatedFrontend) -> None:
        self.frontends.remove(frontend)

    def pause(self, until: float) -> None:
        if self.core is not None:
            self.paused_until = self.calm_since = until

    def settle(self, now: float) -> None:
        self.dies_in_next_step = False
        self.paused_until, self.calm_since = 0.0, now

    def die(self, now: float, *, by_chance: bool) -> None:
        """All that was on its way to it is lost, and some of what it had sent."""
        has_progressed = self._pulse.num_steps > 0 or now - self.calm_since >= STABLE_S
        condemned = self._quarantine.learn(by_chance=by_chance)
        pause_s = self._restarts.pause_s(has_progressed=has_progressed)
        self._pulse.reset()
        epoch = self.core.epoch if self.core else None
        self.core, self.dies_in_next_step = None, False
        self.num_deaths += 1
        self.paused_until = 0.0
        self.starts_at = now + self._random.uniform(0.02, 0.5)
        self.starts_at += MAX_PAUSE_S if pause_s is None else pause_s
        self._note("worker dies", by_chance=by_chance, condemned=condemned)
        self.changes.clear()
        for frontend in self.frontends:
            frontend.requests.drop(now)
            frontend.requests.close(now, NEVER)
            lost = frontend.frames.cut(now)
            frontend.frames.close(now, NEVER)
            if self._faults.stale_frames and frontend.epoch == epoch:
                greeting = [frontend.last_greeting] if frontend.last_greeting else []
                frontend.stale += greeting + lost

    def reset(
        self, frontend: SimulatedFrontend, now: float, *, requests: bool, frames: bool
    ) -> None:
        """Connections break, and are made again; each for itself."""
        if self.core is None:
            return
        if requests and frontend.requests.is_open:
            frontend.requests.drop(now)
            frontend.requests.close(now, self._soon(now))
        if frames and frontend.frames.is_open:
            frontend.frames.cut(now)
            frontend.frames.close(now, self._soon(now) + self._random.choice([0, 0, 0, 5]))
            self.changes.append((frontend, False))

    def _soon(self, now: float) -> float:
        return now + self._random.uniform(0.01, 0.2)

    def _let_in(self, frontend: SimulatedFrontend, now: float) -> None:
        for pipe in (frontend.requests, frontend.frames):
            pipe.close(now, self._soon(now))

    def _start(self, now: float) -> None:
        self.core = SimulatedWorker(
            self._asks.language,
            self._random.getrandbits(60),
            now,
            Keeper(self._faults.grace_s, self._quarantine, self._pulse, self._on_step),
        )
        self.calm_since = self._free_at = now
        self._note("worker starts", epoch=self.core.epoch)
        for frontend in self.frontends:
            frontend.unsubscribed_at = frontend.last_heard = now
            if not frontend.is_dead:
                self._let_in(frontend, now)

    def _turn(self, now: float) -> None:
        core = self.core
        assert core is not None, "dead workers do nothing"
        self.num_turns += 1
        self._take_changes(core, now)
        arrivals: list[bytes] = []
        for frontend in self.frontends:
            taken = frontend.requests.take(now)
            if taken:
                frontend.last_heard = now
                arrivals += taken
                self._tell(frontend, "sends", taken)
        num_steps = core.engine.num_steps
        core.turn(arrivals, self._send, now)
        is_busy = core.engine.num_steps > num_steps
        self._free_at = now + (self._faults.step_s if is_busy else TURN_S)
        self._last_turn = now
        self.after_turn(now)

    def _take_changes(self, core: SimulatedWorker, now: float) -> None:
        while self.changes:
            frontend, is_subscription = self.changes.popleft()
            if is_subscription:
                core.publisher.subscribed(frontend.frontend_id, now)
                frontend.unsubscribed_at = None
            else:
                core.publisher.unsubscribed(frontend.frontend_id, now)
                frontend.unsubscribed_at = now

    def _send(self, topic: bytes, body: bytes) -> bool:
        frontend = self._by_id[topic]
        if not frontend.frames.is_open:  # XPUB drops what nobody has subscribed to
            frontend.frames.lose(self._now)
            return True
        if b"greeting" in body[:16]:
            frontend.last_greeting, frontend.greeting_sent_at = body, self._now
        is_taken = frontend.frames.send(body, self._now)
        self._tell(frontend, "is sent" if is_taken else "has no room for", [body])
        return is_taken

    def _tell(self, frontend: SimulatedFrontend, what: str, messages: list[bytes]) -> None:
        if self.is_verbose:
            for message in messages:
                self._note(what, frontend, abridged(message))

    def _on_step(self, plan: Plan) -> None:
        sequences = [entry.sequence for entry in plan.entries]
        if len(sequences) > 1 and any(sequence.is_suspect for sequence in sequences):
            violation = Violation("suspects run alone", f"{len(sequences)} in a step with one")
            raise Killed(by_chance=False, violation=violation)
        asks = self._asks.named([sequence.request_id for sequence in sequences])
        poison = [ask for ask in asks if ask.is_poison]
        if poison:
            self._blame(poison)
            raise Killed(by_chance=False)
        if self.dies_in_next_step:
            for ask in asks:
                ask.num_lone_hits += len(asks) == 1
            raise Killed(by_chance=True)

    def _blame(self, poison: list[Ask]) -> None:
        for ask in poison:
            ask.num_kills += 1
            if ask.num_kills > 2:
                violation = Violation("poison kills twice at most", f"{ask.num_kills} times")
                raise Killed(by_chance=False, violation=violation)
