"""`chairlift worker` that counts what its loop spends on messages: measured_worker.py OUT worker.

OUT gets a JSON object when the worker ends: turns with work, seconds of the thread's own time in
them, for arrivals and for publishing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chairlift import __main__ as command

if TYPE_CHECKING:
    from chairlift.shared.settings import WorkerSettings
    from chairlift.worker.pulse import Pulse
    from chairlift.worker.quarantine import Quarantine

Method = Callable[[Any], None]


class Meter:
    """Thread time of a method, summed over its calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_calls = 0

    def measured(self, method: Method) -> Method:
        def measure(owner: Any) -> None:
            begin_s = time.thread_time()
            method(owner)
            self.seconds += time.thread_time() - begin_s
            self.num_calls += 1

        return measure


def work(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """In the fork, where torch may be imported."""
    from chairlift.worker.loop import Loop
    from chairlift.worker.main import run

    arrivals, publishing = Meter(), Meter()
    Loop._take_arrivals = arrivals.measured(Loop._take_arrivals)  # type: ignore[method-assign]
    Loop._publish = publishing.measured(Loop._publish)  # type: ignore[method-assign]
    try:
        return run(settings, pulse, quarantine)
    finally:
        figures = {
            "num_turns": publishing.num_calls,
            "arrivals_s": arrivals.seconds,
            "publishing_s": publishing.seconds,
        }
        Path(sys.argv[1]).write_text(json.dumps(figures))


if __name__ == "__main__":
    command._work = work
    raise SystemExit(command.main(sys.argv[2:]))
