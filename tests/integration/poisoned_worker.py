"""`chairlift worker` whose model dies of a token: poisoned_worker.py WAY TOKEN_ID worker."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from chairlift import __main__ as command

if TYPE_CHECKING:
    from chairlift.shared.settings import WorkerSettings
    from chairlift.worker.model_runner import PreparedStep
    from chairlift.worker.pulse import Pulse
    from chairlift.worker.quarantine import Quarantine


def wedge() -> None:
    """Never lets go of the interpreter."""
    re.match(r"(a+)+$", "a" * 64 + "b")


WAYS = {"abort": os.abort, "wedge": wedge}
WAY, TOKEN_ID = WAYS[sys.argv[1]], int(sys.argv[2])


def work(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """In the fork, where torch may be imported."""
    from chairlift.worker.main import run
    from chairlift.worker.model_runner import ModelRunner

    healthy = ModelRunner.run

    def poisoned(self: ModelRunner, step: PreparedStep) -> object:
        if TOKEN_ID in step.batch.input_ids.tolist():
            WAY()
        return healthy(self, step)

    ModelRunner.run = poisoned  # type: ignore[method-assign,assignment]
    return run(settings, pulse, quarantine)


if __name__ == "__main__":
    command._work = work
    raise SystemExit(command.main(sys.argv[3:]))
