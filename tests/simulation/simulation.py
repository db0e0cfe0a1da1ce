"""One simulation: a worker, its frontends and their callers, and what goes wrong between them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection

from chairlift.frontend.protocol import REATTACH_PATIENCE_S, News
from chairlift.shared.messages import Greeting
from chairlift.worker.stream import LEASE_S
from chairlift.worker.supervisor import MAX_PAUSE_S

from .asks import Asks
from .books import check_books
from .faults import Faults
from .frontend import SimulatedFrontend
from .host import WorkerHost
from .model import languages
from .network import NEVER, Pipe, Pipes
from .oracle import Oracle
from .trouble import Trouble
from .violation import Violation
from .watch import Watch

START_S = 1000.0
NUM_FRONTENDS = 3
MAX_SETTLE_S = 200.0
PATIENCE_S = LEASE_S + REATTACH_PATIENCE_S

Tell = Callable[[str], None]


class Simulation:
    """Everything that is random comes from the seed: the same seed is the same run."""

    def __init__(self, seed: int, tell: Tell | None = None, wanted: Collection[str] = ()) -> None:
        self.now = START_S
        self.random = random.Random(seed)
        self.faults = Faults.drawn(self.random, wanted)
        self.counts: Counter[str] = Counter()
        self._tell = tell
        self._pipes: list[Pipe] = []
        language = languages()[self.faults.bytes]
        self.asks = Asks(language, self.random, self.faults.stops, self.faults.ttls)
        self.oracle = Oracle(self.asks, self.note)
        self.host = WorkerHost(self.random, self.faults, self.asks, self.note)
        self._watch = Watch(self.host, self.oracle, self.faults)
        self.host.after_turn = self._watch.look
        self.host.is_verbose = tell is not None
        for _ in range(NUM_FRONTENDS):
            self.add_frontend()
        self._trouble = Trouble(self)
        self.note("begins", self.faults)

    def run(self) -> None:
        """Raises Violation, or what the cores raise."""
        self._run_until(START_S + self.faults.duration_s, [self._trouble])
        self._settle()
        self._check_nothing_is_left()
        self._count()

    def add_frontend(self) -> None:
        """With a name, since ids are nothing to look at."""
        self.counts["frontends"] += 1
        faults = self.faults
        pipes = Pipes(
            Pipe(self.random, faults.delay_s, faults.requests_capacity),
            Pipe(self.random, faults.delay_s, faults.frames_capacity),
        )
        self._pipes += [pipes.requests, pipes.frames]
        name = f"frontend {self.counts['frontends']}"
        frontend_id = self.random.randbytes(8)
        self.host.add(SimulatedFrontend(name, frontend_id, pipes, self, self.now), self.now)

    @property
    def frontends(self) -> list[SimulatedFrontend]:
        """The living."""
        return [frontend for frontend in self.host.frontends if not frontend.is_dead]

    def heard(self, frontend: SimulatedFrontend, item: News) -> None:
        if isinstance(item, Greeting):
            self.note("greeted", frontend, item.epoch)
            self.oracle.greeted(frontend, self.now)
        else:
            self.oracle.hear(frontend, item, self.now)

    def subscribed(self, frontend: SimulatedFrontend) -> None:
        self.host.changes.append((frontend, True))

    def note(self, what: str, *details: object, **more: object) -> None:
        if self._tell is not None:
            named = [f"{name} {value}" for name, value in more.items()]
            words = ", ".join([*map(str, details), *named])
            self._tell(f"{self.now - START_S:8.3f}  {what:<20} {words}")

    def _run_until(self, until: float, troubles: list[Trouble] | None = None) -> None:
        host = self.host
        while True:
            actors = [*host.frontends, host, *(troubles or ())]
            actor = min(actors, key=_due)
            due = actor.due
            if due > until:
                break
            self.now = max(self.now, due)
            actor.act(self.now)
            core = host.core
            if isinstance(actor, SimulatedFrontend) and core and actor.epoch == core.epoch:
                actor.receive_stale(self.now)
        self.now = max(self.now, until)

    def _settle(self) -> None:
        """Nothing goes wrong any more, so everything comes to its end."""
        self.note("settles")
        for pipe in self._pipes:
            pipe.loss = pipe.doubling = 0.0
        for frontend in self.frontends:
            frontend.frozen_until = min(frontend.frozen_until, self.now)
        self.host.settle(self.now)
        deadline = self.now + MAX_SETTLE_S
        while any(frontend.openings for frontend in self.frontends):
            if self.now > deadline:
                raise Violation("nothing is stuck", f"{MAX_SETTLE_S} s after the last trouble")
            self._run_until(self.now + 0.5)

    def _check_nothing_is_left(self) -> None:
        """Whoever is gone was noticed, every grace is over, and nothing is on its way."""
        deadline = self.now + self.faults.grace_s + LEASE_S + MAX_PAUSE_S + 5.0
        while self._has_rest:
            if self.now > deadline:
                raise Violation("nothing is left behind", f"after {self.now - deadline} s")
            self._run_until(self.now + 0.5)
        core = self.host.core
        assert core is not None
        check_books(core)
        if core.scheduler.has_work:
            raise Violation("nothing is left behind", "work without a stream")

    @property
    def _has_rest(self) -> bool:
        core = self.host.core
        is_quiet = all(f.requests.is_empty for f in self.host.frontends)
        return core is None or not is_quiet or any(True for _ in core.streams)

    def _count(self) -> None:
        self.counts["simulated_s"] = round(self.now - START_S)
        self.counts["worker_deaths"] = self.host.num_deaths
        self.counts["turns"] = self.host.num_turns
        self.counts["lost_messages"] = sum(pipe.num_lost for pipe in self._pipes)
        self.counts["streams"] = sum(map(len, self.oracle.openings.values()))
        self.counts["places"] = self.oracle.num_places
        for name, count in self.oracle.num_ended.items():
            self.counts[name] = count


def _due(actor: SimulatedFrontend | WorkerHost | Trouble) -> float:
    return actor.due


assert NEVER > START_S
