"""The parent of a worker: keeps one alive at an address until it is told to stop. Never has torch.

It holds the address's lock, which the fork inherits, watches the pulse, and learns from each death
which requests to be careful with.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from ..shared.addresses import Endpoints
from ..shared.errors import AddressError
from ..shared.logs import short_hash
from ..shared.settings import WorkerSettings
from .address_lock import AddressLock
from .child import DUMP_SIGNAL, REFUSED, Child
from .pulse import MAX_IN_STEP, Pulse, State, Wish
from .quarantine import Quarantine
from .stop_signals import StopSignals

TICK_S = 0.25
LOADING_TIMEOUT_S = 600.0
DUMP_S = 0.5  # to write the stacks, before SIGKILL
KILL_MARGIN_S = 1.5  # beyond the drain: last words. 2.5 s of drain end within honcho's 5
SAME_SIGNAL_S = 0.3  # group and process manager may both deliver what was one wish
LOCK_PATIENCE_S = 2.0  # a killed parent's child lets go a moment later
MAX_DEATHS = 5  # in a row, without progress
FIRST_PAUSE_S = 0.5
PAUSE_GROWTH = 4.0
MAX_PAUSE_S = 8.0
STABLE_S = 10.0

Target = Callable[[WorkerSettings, Pulse, Quarantine], int]

log = structlog.get_logger(__name__)


class Signals(Protocol):
    def wait(self, timeout_s: float) -> int: ...


class Process(Protocol):
    def poll(self) -> int | None: ...
    def send(self, number: int) -> None: ...


class Vigil:
    """How long a worker has been silent, and ready, in time that the watcher was awake itself.

    So a machine that slept, or a stopped process group, is nobody's fault.
    """

    def __init__(self, pulse: Pulse, clock: Callable[[], float]) -> None:
        self.silence_s = 0.0
        self.ready_s = 0.0
        self._pulse = pulse
        self._clock = clock
        self._last_look = clock()
        self._num_turns = pulse.num_turns

    def look(self) -> State:
        now = self._clock()
        elapsed_s, self._last_look = min(now - self._last_look, 4 * TICK_S), now
        state = self._pulse.state  # before the turns: the worker beats, then says that it is ready
        num_turns = self._pulse.num_turns
        self.silence_s = self.silence_s + elapsed_s if num_turns == self._num_turns else 0.0
        self._num_turns = num_turns
        self.ready_s += elapsed_s if state >= State.READY else 0.0
        return state


class Restarts:
    """When the next worker starts: at once while there is progress, then later and later."""

    def __init__(self) -> None:
        self._num_in_vain = 0

    def pause_s(self, *, has_progressed: bool) -> float | None:
        """After a death; None when there is no point in another try."""
        self._num_in_vain = 0 if has_progressed else self._num_in_vain + 1
        if self._num_in_vain >= MAX_DEATHS:
            return None
        if self._num_in_vain <= 1:
            return 0.0
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * PAUSE_GROWTH ** (self._num_in_vain - 2))


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended."""

    exit_code: int  # negative: a signal's number
    wedged_s: float | None  # of silence, for which we killed it
    ready_s: float

    @property
    def is_by_chance(self) -> bool:
        """SIGKILL that was not ours: an operator's, or the kernel's when memory ran out."""
        return self.exit_code == -signal.SIGKILL and self.wedged_s is None

    def __str__(self) -> str:
        if self.wedged_s is not None:
            return f"killed after {self.wedged_s:.1f} s without a sign of life"
        if self.exit_code < 0:
            return f"signal {-self.exit_code} ({signal.strsignal(-self.exit_code)})"
        return "could not start" if self.exit_code == REFUSED else f"exit code {self.exit_code}"


class Supervisor:
    """Owns the worker's life. The only one to hear SIGTERM and SIGINT; says what follows by the
    pulse, so it doesn't matter who else got the signal."""

    def __init__(
        self,
        settings: WorkerSettings,
        target: Target,
        fork: Callable[[Callable[[], int]], Process] = Child,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._target = target
        self._fork = fork
        self._clock = clock
        self._pulse = Pulse(MAX_IN_STEP)  # only the worker knows how many its device takes
        self._quarantine = Quarantine(self._pulse)
        self._restarts = Restarts()
        self._has_been_ready = False
        self._heard_at: float | None = None  # the first stop signal
        self._kill_at = float("inf")

    def run(self) -> int:
        """The exit status: 0 after a signal, 1 when the worker could not start or keeps dying."""
        with StopSignals() as signals:
            try:
                lock = AddressLock(Endpoints.parse(self._settings.address), LOCK_PATIENCE_S)
            except AddressError as error:
                log.error("the worker can't start", why=str(error))
                return 1
            try:
                return self.keep_running(signals, lock.renew)
            except AddressError as error:
                log.error("the worker can't start again", why=str(error))
                return 1
            finally:
                lock.close()

    def keep_running(self, signals: Signals, prepare: Callable[[], None] = lambda: None) -> int:
        """One worker after another, each after `prepare`."""
        while True:
            prepare()
            death = self._live(signals)
            if self._heard_at is not None:
                log.info("the worker has stopped", how=str(death))
                return 0
            if death.exit_code == REFUSED and not self._has_been_ready:
                return 1
            pause_s = self._learn(death)
            if pause_s is None:
                log.error("giving up: no worker gets anything done", num_deaths=MAX_DEATHS)
                return 1
            self._rest(signals, pause_s)
            if self._heard_at is not None:
                return 0

    def _live(self, signals: Signals) -> Death:
        """From a worker's fork to its death."""
        self._pulse.reset()
        child = self._fork(lambda: self._target(self._settings, self._pulse, self._quarantine))
        vigil = Vigil(self._pulse, self._clock)
        wedged_s: float | None = None
        while (exit_code := child.poll()) is None:
            self._listen(signals, TICK_S)
            limit_s = self._patience_s(vigil.look())
            if vigil.silence_s >= limit_s and wedged_s is None:
                wedged_s = vigil.silence_s
                self._dump_and_kill(child, signals, wedged_s)
            if self._clock() >= self._kill_at:
                child.send(signal.SIGKILL)
        self._has_been_ready |= self._pulse.state >= State.READY
        return Death(exit_code, wedged_s, vigil.ready_s)

    def _patience_s(self, state: State) -> float:
        """For a sign of life. A download takes as long as it takes, and has timeouts of its own."""
        match state:
            case State.DOWNLOADING:
                return float("inf")
            case State.LOADING:
                return LOADING_TIMEOUT_S
        return self._settings.hang_timeout_s

    def _dump_and_kill(self, child: Process, signals: Signals, silence_s: float) -> None:
        log.error("the worker is wedged: its stacks follow", silent_for_s=round(silence_s, 1))
        child.send(DUMP_SIGNAL)
        self._rest(signals, DUMP_S)
        child.send(signal.SIGKILL)

    def _rest(self, signals: Signals, seconds: float) -> None:
        """A stop signal ends it; a child's death doesn't."""
        until, wish = self._clock() + seconds, self._pulse.wish
        while self._pulse.wish is wish and (left_s := until - self._clock()) > 0:
            self._listen(signals, left_s)

    def _listen(self, signals: Signals, timeout_s: float) -> None:
        """The first stop signal asks the worker to drain, another one to stop now."""
        if not signals.wait(timeout_s):
            return
        now = self._clock()
        if self._heard_at is None:
            self._heard_at = now
            is_loaded = self._pulse.state >= State.READY  # else there is nothing to lose
            self._pulse.wish = Wish.DRAIN
            drain_s = self._settings.drain_timeout_s + KILL_MARGIN_S if is_loaded else 0.0
            self._kill_at = now + drain_s
            log.info("told to stop", kill_in_s=drain_s)
        elif now - self._heard_at >= SAME_SIGNAL_S:
            self._pulse.wish = Wish.STOP
            self._kill_at = min(self._kill_at, now + KILL_MARGIN_S)
            log.info("told to stop now")

    def _learn(self, death: Death) -> float | None:
        """Seconds until the next start; None to give up."""
        num_in_step = len(self._pulse.step_request_ids)
        has_progressed = self._pulse.num_steps > 0 or death.ready_s >= STABLE_S
        condemned = self._quarantine.learn(by_chance=death.is_by_chance)
        if condemned is not None:  # the cause is known and out of the way
            log.error("a request kills workers: refused from now on", request=short_hash(condemned))
            has_progressed = True
        pause_s = self._restarts.pause_s(has_progressed=has_progressed)
        log.error(
            "the worker died", how=str(death), requests_in_step=num_in_step, next_start_in_s=pause_s
        )
        return pause_s
