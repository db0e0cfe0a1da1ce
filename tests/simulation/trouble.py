"""Callers who come and go, and everything that goes wrong, at random times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .frontend import Kind, SimulatedFrontend
from .network import NEVER
from .oracle import OVERLAP_S

if TYPE_CHECKING:
    from .simulation import Simulation

NUM_RECENT = 12


class Trouble:
    """Draws what happens next among the kinds that are on."""

    def __init__(self, simulation: Simulation) -> None:
        self._next_at = simulation.now
        self._crash_at = NEVER
        self._simulation = simulation
        self._random = simulation.random
        self._recent: list[bytes] = []
        self._num_asks_left = simulation.faults.num_asks
        self._events = self._weighted()
        self._interval_s = simulation.faults.duration_s / (4 * simulation.faults.num_asks)

    @property
    def due(self) -> float:
        return min(self._next_at, self._crash_at)

    def act(self, now: float) -> None:
        if now >= self._crash_at:
            self._crash_at = NEVER
            self._crash(now)
            return
        self._next_at = now + self._random.expovariate(1 / self._interval_s)
        names = [*self._events]
        weights = [self._events[name][1] for name in names]
        (name,) = self._random.choices(names, weights)
        self._events[name][0](now)

    def _weighted(self) -> dict[str, tuple[Callable[[float], None], float]]:
        faults = self._simulation.faults
        events = {
            "asks": (self._ask, 10.0, True),
            "joins": (self._join, 3.0, faults.joins),
            "watches": (self._watch, 3.0, faults.watchers),
            "takes over": (self._take_over, 4.0, faults.takeovers),
            "conflicts": (self._conflict, 1.0, faults.conflicts),
            "cancels": (self._cancel, 3.0, faults.cancels),
            "detaches": (self._detach, 3.0, faults.detaches),
            "storms": (self._storm, 0.7, faults.storms),
            "dies": (self._die, 0.7, faults.frontend_deaths),
            "freezes": (self._freeze, 1.5, faults.freezes),
            "hangs": (self._hang, 1.0, faults.freezes and faults.takeovers),
            "freezes for long": (self._freeze_for_long, 1.0, faults.long_freezes),
            "resets": (self._reset, 1.5, faults.resets),
            "spikes": (self._spike, 2.0, faults.spikes),
            "loses frames": (self._lose_frames, 2.0, faults.frame_loss),
            "loses requests": (self._lose_requests, 2.0, faults.request_loss),
            "doubles": (self._double, 1.0, faults.doubled),
            "crashes": (self._crash, 0.7, faults.crashes),
            "crashes in a step": (self._crash_in_step, 0.7, faults.mid_step_crashes),
            "pauses": (self._pause, 1.0, faults.pauses),
        }
        return {name: (act, weight) for name, (act, weight, is_on) in events.items() if is_on}

    def _awake(self) -> SimulatedFrontend | None:
        """One that can do something now."""
        now = self._simulation.now
        awake = [f for f in self._simulation.frontends if f.frozen_until <= now and f.epoch]
        return self._random.choice(awake) if awake else None

    def _note(self, what: str, *details: object) -> None:
        self._simulation.counts[what] += 1
        self._simulation.note(what, *details)

    def _open(self, frontend: SimulatedFrontend, kind: Kind, request_id: bytes) -> None:
        simulation, now = self._simulation, self._simulation.now
        asks = simulation.asks.by_id.get(request_id)
        opening = frontend.open(
            kind, request_id, asks[-1] if asks and kind == "submit" else None, now
        )
        simulation.oracle.add(opening)

    def _ask(self, now: float) -> None:
        frontend = self._awake()
        if frontend is None or not self._num_asks_left:
            return
        self._num_asks_left -= 1
        is_poison = self._simulation.faults.poison and self._random.random() < 0.1
        ask = self._simulation.asks.new(is_poison=is_poison)
        self._recent = [*self._recent[1 - NUM_RECENT :], ask.request_id]
        self._note("requests", frontend.name, ask.request_id.hex()[:6], "poison" * is_poison)
        self._open(frontend, "submit", ask.request_id)

    def _recent_of(self, frontend: SimulatedFrontend) -> bytes | None:
        """Something to come back for that isn't read there."""
        others = [request_id for request_id in self._recent if request_id not in frontend.openings]
        return self._random.choice(others) if others else None

    def _join(self, now: float) -> None:
        self._come_back("joins", "submit")

    def _watch(self, now: float) -> None:
        self._come_back("watches", "watch")

    def _take_over(self, now: float) -> None:
        """Sometimes by a frontend that reads it already."""
        frontend = self._awake()
        if frontend is None or not frontend.openings or self._random.random() < 0.8:
            self._come_back("takeovers", "take over")
            return
        opening = self._random.choice([*frontend.openings.values()])
        self._note("takeovers", opening)
        frontend.take_over(opening, now)

    def _come_back(self, what: str, kind: Kind) -> None:
        frontend = self._awake()
        request_id = self._recent_of(frontend) if frontend else None
        if frontend is None or request_id is None:
            return
        asks = self._simulation.asks.by_id[request_id]
        if kind == "submit" and len(asks) > 1 and not self._may_conflict(frontend, request_id):
            return
        if kind != "submit" and self._random.random() < 0.05:
            request_id = self._random.randbytes(16)
        self._note(what, frontend.name, request_id.hex()[:6])
        self._open(frontend, kind, request_id)

    def _conflict(self, now: float) -> None:
        """Another body under a known id."""
        frontend = self._awake()
        request_id = self._recent_of(frontend) if frontend else None
        if frontend is None or request_id is None or not self._may_conflict(frontend, request_id):
            return
        self._simulation.asks.new(request_id)
        self._note("conflicts", frontend.name, request_id.hex()[:6])
        self._open(frontend, "submit", request_id)

    def _may_conflict(self, frontend: SimulatedFrontend, request_id: bytes) -> bool:
        """A known limit: while news of what it asked for before is on its way, a frontend takes it
        for the answer to what it asks for now under the same id."""
        openings = self._simulation.oracle.openings[request_id]
        own = [opening for opening in openings if opening.frontend is frontend]
        has_heard_all = all(o.ended_at + OVERLAP_S < self._simulation.now for o in own)
        return not own or (self._simulation.faults.is_punctual and has_heard_all)

    def _cancel(self, now: float) -> None:
        self._leave("cancel")

    def _detach(self, now: float) -> None:
        self._leave("detach")

    def _leave(self, farewell: str) -> None:
        frontend = self._awake()
        if frontend is None or not frontend.openings:
            return
        request_id = self._random.choice([*frontend.openings])
        self._note(f"{farewell}s", frontend.name, request_id.hex()[:6])
        if farewell == "cancel":
            self._cancel_one(frontend, request_id)
        else:
            frontend.leave(request_id, "detach", self._simulation.now)

    def _cancel_one(self, frontend: SimulatedFrontend, request_id: bytes) -> None:
        self._simulation.oracle.cancelled.append(frontend.openings[request_id])
        frontend.leave(request_id, "cancel", self._simulation.now)

    def _storm(self, now: float) -> None:
        frontend = self._awake()
        for request_id in [*frontend.openings] if frontend else ():
            assert frontend is not None
            self._note("cancels", frontend.name, request_id.hex()[:6])
            self._cancel_one(frontend, request_id)

    def _die(self, now: float) -> None:
        """kill -9; another one joins, and some of the callers come back elsewhere."""
        frontend = self._random.choice(self._simulation.frontends)
        self._note("frontend_deaths", frontend.name)
        orphans = [*frontend.openings]
        host = self._simulation.host
        if host.core is not None and frontend.frames.is_open:
            host.changes.append((frontend, False))
        frontend.die(now)
        frontend.frames.drop(now)
        frontend.frames.close(now, NEVER)
        self._simulation.add_frontend()
        heir = self._awake()
        if heir is not None:
            self._inherit(heir, orphans)

    def _hang(self, now: float) -> None:
        """Its callers give one up that will wake again, and the worker may die meanwhile.

        Sometimes only the heir is awake, so that nobody else hears of the takeover.
        """
        frontend, heir = self._awake(), self._awake()
        if frontend is None or heir is None or frontend is heir:
            return
        seconds = self._random.uniform(0.1, 2)
        self._note("freezes", frontend.name, f"{seconds:.2f} s")
        frontend.frozen_until = now + seconds
        if self._random.random() < 0.5:
            for other in self._simulation.frontends:
                if other is not heir:
                    other.frozen_until = max(other.frozen_until, now + seconds)
        self._inherit(heir, [*frontend.openings])
        if self._simulation.faults.crashes:
            self._crash_at = max(now + 0.02, frontend.frozen_until - self._random.uniform(0, 0.3))

    def _inherit(self, heir: SimulatedFrontend, request_ids: list[bytes]) -> None:
        for request_id in request_ids:
            if request_id not in heir.openings and self._random.random() < 0.6:
                self._note("takeovers", heir.name, request_id.hex()[:6])
                self._open(heir, "take over", request_id)

    def _freeze(self, now: float) -> None:
        self._stop(self._random.uniform(0.02, 1.5))

    def _freeze_for_long(self, now: float) -> None:
        self._stop(self._random.uniform(2, 15))

    def _stop(self, seconds: float) -> None:
        frontend = self._random.choice(self._simulation.frontends)
        if frontend.frozen_until <= self._simulation.now:
            self._note("freezes", frontend.name, f"{seconds:.2f} s")
            frontend.frozen_until = self._simulation.now + seconds

    def _reset(self, now: float) -> None:
        frontend = self._random.choice(self._simulation.frontends)
        both = self._random.choice([(True, True), (False, True), (True, False)])
        self._note("resets", frontend.name, both)
        self._simulation.host.reset(frontend, now, requests=both[0], frames=both[1])

    def _spike(self, now: float) -> None:
        frontend = self._random.choice(self._simulation.frontends)
        pipe = self._random.choice([frontend.requests, frontend.frames])
        pipe.held_until = max(pipe.held_until, now + self._random.uniform(0.05, 0.4))
        self._note("spikes", frontend.name)

    def _lose_frames(self, now: float) -> None:
        pipe = self._random.choice(self._simulation.frontends).frames
        pipe.loss = 0.0 if pipe.loss else self._random.choice([0.02, 0.2, 0.7])

    def _lose_requests(self, now: float) -> None:
        pipe = self._random.choice(self._simulation.frontends).requests
        pipe.loss = 0.0 if pipe.loss else self._random.choice([0.02, 0.2, 0.5])

    def _double(self, now: float) -> None:
        pipe = self._random.choice(self._simulation.frontends).frames
        pipe.doubling = 0.0 if pipe.doubling else 0.3

    def _crash(self, now: float) -> None:
        if self._simulation.host.core is not None:
            self._note("crashes")
            self._simulation.host.die(now, by_chance=True)

    def _crash_in_step(self, now: float) -> None:
        self._note("crashes in a step")
        self._simulation.host.dies_in_next_step = True

    def _pause(self, now: float) -> None:
        seconds = self._random.choice([0.05, 0.5, 3.0])
        self._note("pauses", f"{seconds} s")
        self._simulation.host.pause(now + seconds)
