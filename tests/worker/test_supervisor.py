"""The worker's parent: histories played with a fake clock, then real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chairlift.shared.settings import WorkerSettings
from chairlift.worker import supervisor as module
from chairlift.worker.child import CRASHED, DUMP_SIGNAL, REFUSED
from chairlift.worker.pulse import Pulse, State, Wish
from chairlift.worker.quarantine import Quarantine
from chairlift.worker.supervisor import Supervisor

WAIT_S = 20.0
SCRIPT = Path(__file__).with_name("supervised.py")
ALICE, BOB = b"a" * 16, b"b" * 16
FOREVER = float("inf")


@dataclass(frozen=True)
class Life:
    """How one worker lives: what it does at its start, and its end."""

    exit_code: int = CRASHED
    dies_after_s: float = 0.0
    ready_after_s: float = 0.0
    last_beat_after_s: float = FOREVER
    start: Callable[[Pulse, Quarantine], None] = lambda pulse, quarantine: None
    drains_in_s: float = FOREVER


HEALTHY = Life(dies_after_s=FOREVER, drains_in_s=0.0)


@dataclass
class Stage:
    """Plays lives one after another on a clock of its own; is the parent's world.

    After the last one comes a healthy worker, which is told to stop.
    """

    lives: list[Life]
    stops: list[float] = field(default_factory=list)
    sleeps: dict[float, float] = field(default_factory=dict)  # when the machine does, how long
    now: float = 0.0
    starts: list[float] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)
    child: Actor | None = None
    pulse: Pulse | None = None
    quarantine: Quarantine | None = None

    def run(self, **settings: float) -> int:
        options = WorkerSettings(address="tcp://127.0.0.1:5", **settings)  # type: ignore[arg-type]
        return Supervisor(options, self.begin, self.fork, lambda: self.now).keep_running(self)

    def begin(self, settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
        self.pulse, self.quarantine = pulse, quarantine
        return 0

    def fork(self, body: Callable[[], int]) -> Actor:
        body()
        assert self.pulse is not None
        assert self.quarantine is not None
        self.starts.append(round(self.now, 3))
        if len(self.starts) > len(self.lives):
            self.lives.append(HEALTHY)
            self.stops.append(self.now + 1.0)
        life = self.lives[len(self.starts) - 1]
        life.start(self.pulse, self.quarantine)
        self.child = Actor(self, life, self.pulse)
        return self.child

    def wait(self, timeout_s: float) -> int:
        until = self.now + timeout_s
        if self.child is not None and self.now < self.child.end < until:
            until = self.child.end
        self.now = min([until, *self.stops])
        num_stops = self.stops.count(self.now)
        self.stops = [stop for stop in self.stops if stop > self.now]
        for asleep in [at for at in self.sleeps if at <= self.now]:
            self.now += self.sleeps.pop(asleep)
        return num_stops


class Actor:
    """A worker that plays its life."""

    def __init__(self, stage: Stage, life: Life, pulse: Pulse) -> None:
        self.stage, self.life, self.pulse = stage, life, pulse
        self.born = stage.now
        self.end = stage.now + life.dies_after_s
        self.exit_code = life.exit_code

    def poll(self) -> int | None:
        age = self.stage.now - self.born
        if self.pulse.wish is not Wish.RUN and self.exit_code > 0:
            self.end = min(self.end, self.stage.now + self.life.drains_in_s)
            self.exit_code = 0
        if age >= self.life.ready_after_s:
            self.pulse.state = State.READY
            if age <= self.life.last_beat_after_s:
                self.pulse.beat()
        return self.exit_code if self.stage.now >= self.end else None

    def send(self, number: int) -> None:
        self.stage.sent.append((round(self.stage.now - self.born, 3), number))
        if number == signal.SIGKILL:
            self.end, self.exit_code = self.stage.now, -signal.SIGKILL


def complete_a_step(pulse: Pulse, quarantine: Quarantine) -> None:
    pulse.begin_step([ALICE])
    pulse.end_step()


def die_in_a_step(pulse: Pulse, quarantine: Quarantine) -> None:
    pulse.begin_step([ALICE, BOB])


def test_the_next_worker_starts_at_once_and_then_later_and_later() -> None:
    """Streams wait for the first restart; without progress there are pauses, then an end."""
    stage = Stage([Life() for _ in range(9)])
    assert stage.run() == 1
    assert stage.starts == [0.0, 0.0, 0.5, 2.5, 10.5]


@pytest.mark.parametrize(
    "life",
    [Life(start=complete_a_step), Life(dies_after_s=module.STABLE_S + 1)],
    ids=["a step", "a while"],
)
def test_progress_makes_up_for_deaths(life: Life) -> None:
    """Workers that complete a step or stay ready for a while are restarted at once, forever."""
    stage = Stage([life] * 20)
    assert stage.run() == 0
    assert len(stage.starts) == 21
    assert stage.starts[-1] == 20 * life.dies_after_s


def test_a_refusal_is_final() -> None:
    """A worker that can't start has said why, and is not started again."""
    stage = Stage([Life(exit_code=REFUSED, ready_after_s=FOREVER)])
    assert stage.run() == 1
    assert stage.starts == [0.0]


def test_a_refusal_later_on_is_a_death() -> None:
    """What has worked before may work again: a download or an address may be away for a while."""
    refusals = [Life(exit_code=REFUSED, ready_after_s=FOREVER) for _ in range(2)]
    stage = Stage([Life(dies_after_s=20.0), *refusals])
    assert stage.run() == 0
    assert stage.starts == [0.0, 20.0, 20.0, 20.5]


def test_a_known_cause_counts_for_nothing() -> None:
    """One client that sends its poisonous request thrice, to an idle worker, ends no service."""
    poisons = [letter * 16 for letter in (b"x", b"y", b"z")]
    lives = [Life(start=lambda pulse, _, p=p: pulse.begin_step([p])) for p in poisons for _ in "ab"]
    stage = Stage(lives)
    assert stage.run() == 0
    assert len(stage.starts) == 7
    assert stage.quarantine is not None
    assert all(map(stage.quarantine.is_condemned, poisons))


def test_a_silent_worker_is_dumped_and_killed() -> None:
    """No turn of the loop within the limit: its stacks first, then SIGKILL, then a new worker."""
    wedged = Life(dies_after_s=FOREVER, last_beat_after_s=4.0, start=die_in_a_step)
    stage = Stage([wedged])
    assert stage.run(hang_timeout_s=3.0) == 0
    (dumped_at, dump), (killed_at, kill) = stage.sent
    assert (dump, kill) == (DUMP_SIGNAL, signal.SIGKILL)
    assert 7.0 <= dumped_at <= 7.5
    assert killed_at == dumped_at + module.DUMP_S
    assert len(stage.starts) == 2
    assert stage.quarantine is not None
    assert stage.quarantine.is_suspect(ALICE)
    assert stage.quarantine.is_suspect(BOB)


def test_all_of_two_steps_of_a_gpu_are_suspected() -> None:
    """However few sequences the settings name: on a GPU there are more where nobody says."""
    ids = [number.to_bytes(16, "big") for number in range(2 * 256)]
    stage = Stage([Life(start=lambda pulse, quarantine: pulse.begin_step(ids))])
    stage.run()
    assert stage.quarantine is not None
    assert all(map(stage.quarantine.is_suspect, ids))


def test_our_own_kill_is_no_chance() -> None:
    """A request that wedges its lone step is condemned at once, though SIGKILL ended it."""
    wedged = Life(
        dies_after_s=FOREVER,
        last_beat_after_s=0.0,
        start=lambda pulse, quarantine: pulse.begin_step([BOB]),
    )
    stage = Stage([wedged, wedged])
    assert stage.run(hang_timeout_s=3.0) == 0
    assert stage.quarantine is not None
    assert stage.quarantine.is_condemned(BOB)


def test_loading_may_take_longer_than_a_step() -> None:
    """Silence while a model is loaded is no wedge, until the larger limit."""
    stage = Stage([Life(ready_after_s=500.0, dies_after_s=510.0)])
    assert stage.run(hang_timeout_s=3.0) == 0
    assert stage.sent == []
    stuck = Life(ready_after_s=FOREVER, dies_after_s=FOREVER)
    stage = Stage([stuck])
    assert stage.run(hang_timeout_s=3.0) == 0
    assert stage.sent[0][0] == pytest.approx(module.LOADING_TIMEOUT_S, abs=1)


def test_a_sleeping_machine_wedges_nobody() -> None:
    """Time that the parent itself was stopped for is not held against the worker."""
    stage = Stage([Life(dies_after_s=2000.0)], sleeps={5.0: 1000.0})
    assert stage.run(hang_timeout_s=3.0) == 0
    assert stage.sent == []


def test_a_worker_that_drains_is_not_killed() -> None:
    """After the signal it has its time; the exit is clean."""
    stage = Stage([Life(dies_after_s=FOREVER, drains_in_s=2.0)], stops=[10.0])
    assert stage.run() == 0
    assert stage.sent == []
    assert stage.now == pytest.approx(12.0, abs=0.5)


def test_a_worker_that_does_not_end_is_killed_in_time() -> None:
    """With the default settings everything is over within the 5 s of honcho."""
    stage = Stage([Life(dies_after_s=FOREVER)], stops=[10.0])
    assert stage.run() == 0
    assert [number for _, number in stage.sent] == [signal.SIGKILL]
    assert stage.now < 10 + 5


def test_nothing_is_lost_while_it_loads() -> None:
    """A signal before the worker is ready ends it at once."""
    stage = Stage([Life(ready_after_s=FOREVER, dies_after_s=FOREVER)], stops=[10.0])
    assert stage.run() == 0
    assert stage.now == 10.0


def test_a_signal_in_the_pause_is_heard() -> None:
    """Between two workers there is nothing to wait for."""
    stage = Stage([Life() for _ in range(9)], stops=[4.0])
    assert stage.run() == 0
    assert stage.now == 4.0


@pytest.mark.parametrize(("second", "end"), [(10.1, 71.5), (15.0, 16.5)])
def test_a_second_signal_stops_now(second: float, end: float) -> None:
    """But not one that follows at once: group and process manager may both deliver the same."""
    stage = Stage([Life(dies_after_s=FOREVER)], stops=[10.0, second])
    assert stage.run(drain_timeout_s=60.0) == 0
    assert stage.now == pytest.approx(end, abs=0.5)


def test_a_death_while_draining_is_the_end() -> None:
    """Who was told to stop starts no new worker."""
    stage = Stage([Life(dies_after_s=11.0)], stops=[10.0])
    assert stage.run() == 0
    assert len(stage.starts) == 1


class Running:
    """A process with a supervisor and a fake worker."""

    def __init__(self, worker: str, address: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), worker, address, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def expect(self, *words: str) -> None:
        """The next lines that the workers print."""
        assert self.process.stdout is not None
        for word in words:
            assert self.process.stdout.readline() == f"{word}\n"

    def rest(self) -> tuple[str, str]:
        """What else it prints and logs until its end."""
        return self.process.communicate(timeout=WAIT_S)


@contextmanager
def running(worker: str, address: str, *arguments: str) -> Iterator[Running]:
    it = Running(worker, address, *arguments)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.process.kill()
        it.process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("is_to_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(address: str, number: int, is_to_group: bool) -> None:
    """To the parent alone or, several times, to the group: the worker drains, the exit is 0."""
    with running("obedient", address) as it:
        it.expect("ready")
        if is_to_group:
            os.killpg(it.process.pid, number)
            os.killpg(it.process.pid, number)
        else:
            it.process.send_signal(number)
        assert it.rest()[0] == "DRAIN\n"
        assert it.process.returncode == 0


def test_a_second_signal_reaches_a_draining_worker(address: str) -> None:
    """The worker hears that it should stop now, and does."""
    with running("slow_to_drain", address) as it:
        it.expect("ready")
        it.process.send_signal(signal.SIGTERM)
        it.expect("DRAIN")
        with pytest.raises(subprocess.TimeoutExpired):
            it.process.wait(module.SAME_SIGNAL_S + 0.2)
        it.process.send_signal(signal.SIGTERM)
        it.expect("STOP")
        it.rest()
        assert it.process.returncode == 0


@pytest.mark.parametrize(("worker", "word"), [("stubborn", "ready"), ("loading", "loading")])
def test_who_does_not_listen_is_killed(address: str, worker: str, word: str) -> None:
    """The exit is 0 all the same, because that was the wish."""
    with running(worker, address) as it:
        it.expect(word)
        it.process.send_signal(signal.SIGTERM)
        it.rest()
        assert it.process.returncode == 0


@pytest.mark.parametrize("worker", ["stubborn", "stubborn_without_prctl"])
def test_a_worker_ends_with_its_parent(address: str, worker: str) -> None:
    """kill -9 of the parent: the worker's end of the pipe closes as well, on any system."""
    with running(worker, address) as it:
        it.expect("ready")
        it.process.kill()
        assert it.rest()[0] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere both look alike")
def test_parent_and_worker_are_told_apart(address: str) -> None:
    """`ps` and `top` show who the worker is, and that the parent still is what was started."""
    with running("obedient", address) as it:
        it.expect("ready")
        parent = Path(f"/proc/{it.process.pid}")
        child = Path(f"/proc/{(parent / f'task/{parent.name}/children').read_text().strip()}")
        title = (child / "cmdline").read_bytes().rstrip(b"\0").decode()
        assert title == f"chairlift worker of parent {it.process.pid}"
        assert (child / "comm").read_text() == "chairlift-child\n"
        assert b"supervised.py" in (parent / "cmdline").read_bytes()


def test_an_address_is_free_as_soon_as_its_holders_are_gone(address: str) -> None:
    """A successor started right after kill -9 takes the address over."""
    with running("stubborn", address) as first:
        first.expect("ready")
        first.process.kill()
        with running("obedient", address) as second:
            second.expect("ready")


def test_a_second_supervisor_is_refused(address: str) -> None:
    """It names the process to stop, which is the parent, and starts no worker."""
    with running("obedient", address) as first:
        first.expect("ready")
        with running("obedient", address) as second:
            output, log = second.rest()
        assert output == ""
        assert f"process {first.process.pid}" in log
        assert second.process.returncode == 1


def test_a_wedged_worker_shows_where(address: str) -> None:
    """Its stacks are in the log though it never let go of the interpreter; the next one lives."""
    with running("wedged", address, "1") as it:
        it.expect("ready", "ready")
        it.process.send_signal(signal.SIGTERM)
        output, log = it.rest()
        assert output == "DRAIN\n"
        assert "in catastrophe" in log
        assert "requests_in_step=1" in log


def test_poison_kills_two_workers(address: str) -> None:
    """The step of all, then the poisonous one alone; the third worker is told to refuse it."""
    with running("poisoned", address) as it:
        it.expect("ready", "step of a and b")
        it.expect("ready", "step of a", "step of b")
        it.expect("ready", "step of a")
        it.process.send_signal(signal.SIGTERM)
        output, log = it.rest()
        assert output == "DRAIN\n"
        assert log.count("the worker died") == 2
        assert "a request kills workers" in log
        assert BOB.hex() not in log
        assert BOB.decode() not in log


@pytest.mark.parametrize(("worker", "word"), [("dying", "dying"), ("failing", "failing")])
def test_a_worker_that_never_works_is_given_up(address: str, worker: str, word: str) -> None:
    """After five deaths in a row the exit is 1, with a line that says so."""
    with running(worker, address) as it:
        output, log = it.rest()
        assert output == f"{word}\n" * module.MAX_DEATHS
        assert "giving up" in log
        assert it.process.returncode == 1


def test_a_refusing_worker_is_not_restarted(address: str) -> None:
    """The exit is 1 after one try."""
    with running("refusing", address) as it:
        assert it.rest()[0] == "refused\n"
        assert it.process.returncode == 1
