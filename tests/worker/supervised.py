"""A supervisor with a fake worker, as a process: supervised.py WORKER ADDRESS [SECONDS_TO_HANG].

Workers tell what happens to them on stdout, a word a line.
"""

from __future__ import annotations

import os
import re
import sys
import time

from chairlift.shared.logs import configure_logs
from chairlift.shared.settings import WorkerSettings
from chairlift.worker import child, supervisor
from chairlift.worker.child import REFUSED
from chairlift.worker.pulse import Pulse, State, Wish
from chairlift.worker.quarantine import Quarantine

ALICE, BOB = b"a" * 16, b"b" * 16


def tell(word: object) -> None:
    print(word, flush=True)


def ready(pulse: Pulse) -> None:
    pulse.beat()
    pulse.state = State.READY
    tell("ready")


def obedient(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Does as it is told."""
    ready(pulse)
    return obey(pulse)


def obey(pulse: Pulse) -> int:
    while pulse.wish is Wish.RUN:
        pulse.beat()
        time.sleep(0.01)
    tell(pulse.wish.name)
    return 0


def slow_to_drain(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Drains until it is told to stop now."""
    ready(pulse)
    wish = pulse.wish
    while wish is not Wish.STOP:
        pulse.beat()
        time.sleep(0.01)
        if pulse.wish is not wish:
            wish = pulse.wish
            tell(wish.name)
    return 0


def stubborn(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Lives, and hears nothing."""
    ready(pulse)
    while True:
        pulse.beat()
        time.sleep(0.01)


def stubborn_without_prctl(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    return stubborn(settings, pulse, quarantine)


def loading(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Is never ready."""
    tell("loading")
    time.sleep(60)
    return 0


def refusing(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    tell("refused")
    return REFUSED


def dying(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    tell("dying")
    os.abort()


def failing(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    tell("failing")
    raise RuntimeError("nothing works today")


def wedged(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Hangs in a regular expression, which never lets go of the interpreter; better next time."""
    if quarantine.is_suspect(ALICE):
        return obedient(settings, pulse, quarantine)
    ready(pulse)
    pulse.begin_step([ALICE])
    catastrophe()
    return 0


def catastrophe() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def poisoned(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """Any step with Bob in it is the last one."""
    ready(pulse)
    callers = [who for who in (ALICE, BOB) if not quarantine.is_condemned(who)]
    suspects = [who for who in callers if quarantine.is_suspect(who)]
    for step in ([who] for who in suspects) if suspects else [callers]:
        tell("step of " + " and ".join(chr(who[0]) for who in step))
        pulse.begin_step(step)
        if BOB in step:
            os.abort()
        pulse.end_step()
        pulse.clear(step[0])
    return obey(pulse)


WORKERS = (
    obedient,
    slow_to_drain,
    stubborn,
    stubborn_without_prctl,
    loading,
    refusing,
    dying,
    failing,
    wedged,
    poisoned,
)


def main(name: str, address: str, hang_timeout_s: str = "30") -> int:
    configure_logs("console", "info")
    supervisor.FIRST_PAUSE_S = 0.01
    if name.endswith("without_prctl"):
        child._kernel_ends_with_parent = lambda: False
    settings = WorkerSettings(
        address=address,
        hang_timeout_s=float(hang_timeout_s),
        drain_timeout_s=0.0 if name == "stubborn" else 30.0,
    )
    worker = {worker.__name__: worker for worker in WORKERS}[name]
    status = supervisor.Supervisor(settings, worker).run()
    assert "torch" not in sys.modules
    return status


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
