"""`chairlift worker` that dies at chosen points: failing_worker.py PLAN HIGH_WATER_MARK worker.

PLAN is a file of lines `SITE COUNT`: each worker in turn takes the first one out and kills itself
at the count's call of that site. Without lines left, or with /dev/null, it lives.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chairlift import __main__ as command

if TYPE_CHECKING:
    from chairlift.shared.settings import WorkerSettings
    from chairlift.worker.pulse import Pulse
    from chairlift.worker.quarantine import Quarantine


@dataclass(frozen=True, slots=True)
class Site:
    """Before or after a function of the worker; `when` looks at its arguments."""

    place: str  # module and name, with a dot where it is a method
    is_before: bool
    most: int = 200  # the last call to die at; enough for first and later steps
    when: Callable[..., bool] = lambda *_: True


def _is_prefill(_: object, step: Any) -> bool:
    return step.batch.num_rows > len(step.batch.segments)


def _is_decode(_: object, step: Any) -> bool:
    return not _is_prefill(_, step)


SITES = {
    "load": Site("main:load_model", is_before=True, most=1),
    "accepted": Site("streams:Streams.open", is_before=False, most=60),
    "prefill": Site("model_runner:ModelRunner.run", is_before=True, when=_is_prefill),
    "decode": Site("model_runner:ModelRunner.run", is_before=True, when=_is_decode),
    "computed": Site("model_runner:ModelRunner.run", is_before=False),
    "committed": Site("engine:Engine.step", is_before=False),
    "to-send": Site("sockets:WorkerSockets.send", is_before=True),
    "sent": Site("sockets:WorkerSockets.send", is_before=False),  # and the pointer not yet moved
    "acknowledged": Site("publisher:Publisher.acknowledge", is_before=False, most=10),
    "left": Site("streams:Streams.leave", is_before=False, most=40),
}


def arm(site: Site, count: int) -> None:
    """Replaces the site's function by one that lives for `count` - 1 calls."""
    module_name, _, path = site.place.partition(":")
    owner: Any = import_module(f"chairlift.worker.{module_name}")
    *classes, name = path.split(".")
    for class_name in classes:
        owner = getattr(owner, class_name)
    healthy, num_left = getattr(owner, name), count

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal num_left
        num_left -= site.when(*arguments)
        if num_left <= 0 and site.is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = healthy(*arguments, **named)
        if num_left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def work(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """In the fork, where torch may be imported."""
    from chairlift.worker import sockets
    from chairlift.worker.main import run

    sockets.HIGH_WATER_MARK = int(sys.argv[2])
    plan = Path(sys.argv[1])
    first, *rest = plan.read_text().splitlines() or [""]
    if first:
        plan.write_text("\n".join(rest))
        name, count = first.split()
        arm(SITES[name], int(count))
    return run(settings, pulse, quarantine)


if __name__ == "__main__":
    command._work = work
    raise SystemExit(command.main(sys.argv[3:]))
