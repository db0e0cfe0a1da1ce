"""Disturbs a server under load and says what held; docs/reliability.md has such a run's figures.

Without arguments every scenario but the soak is run, in about 12 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

from benchmark.machine import LoadMeter, Machine

from tests.integration.fleet import expected_of
from tests.tiny_model import make_tiny_model

from . import (
    frontend_scenarios,
    hostile_scenarios,
    lifecycle_scenarios,
    long_scenarios,
    worker_scenarios,
)
from .lab import Lab
from .outcome import Outcome
from .report import Report

Scenario = Callable[[Lab], Awaitable[Outcome]]

SCENARIOS: dict[str, Scenario] = {
    "kill-worker": worker_scenarios.kill_worker,
    "worker-phases": worker_scenarios.worker_phases,
    "stop-worker": worker_scenarios.stop_the_worker,
    "kill-frontend": frontend_scenarios.kill_frontend,
    "stop-frontend": frontend_scenarios.stop_frontend,
    "lost-frames": frontend_scenarios.lose_frames,
    "vanishing": frontend_scenarios.vanishing,
    "hang-up": frontend_scenarios.hang_up,
    "hostile-bytes": hostile_scenarios.hostile_bytes,
    "flood": hostile_scenarios.flood,
    "burst": hostile_scenarios.burst,
    "overload": hostile_scenarios.overload,
    "other-version": hostile_scenarios.other_version,
    "start-order": lifecycle_scenarios.start_order,
    "drain": lifecycle_scenarios.drain,
    "manager": lifecycle_scenarios.manager,
    "cost": long_scenarios.cost,
    "soak": long_scenarios.soak,
}
LIMIT_S = 300.0  # for one scenario, less a soak's own length


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 all holds, 1 something does not, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.list:
        print(*(f"{name:14} {_duty(run)}" for name, run in SCENARIOS.items()), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(options, shlex.join(["scripts/chaos", *arguments]))
    except KeyboardInterrupt:
        return 130


def _interrupt(*_: object) -> NoReturn:
    """Ends as Ctrl-C does, so that every process is stopped."""
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, command: str) -> int:
    """Saves after each scenario, so that an interrupted run is not for nothing."""
    os.environ["GOMP_SPINCOUNT"] = "0"  # of more threads than cores none should spin
    report = Report(command, Machine.this(), {})
    with tempfile.TemporaryDirectory(prefix="chairlift-chaos-") as name:
        model = make_tiny_model(Path(name))
        lab = Lab(model, expected_of(model), options.minutes, options.seed)
        for scenario in options.scenarios or [name for name in SCENARIOS if name != "soak"]:
            print(f"chaos: {scenario} …", file=sys.stderr, flush=True)
            report.outcomes[scenario] = _play(SCENARIOS[scenario], lab)
            _tell(report.outcomes[scenario])
            if options.out:
                report.save(options.out)
    print(report.table())
    print(report.failures(), file=sys.stderr)
    return int(not all(outcome.is_good for outcome in report.outcomes.values()))


def _play(scenario: Scenario, lab: Lab) -> Outcome:
    """What goes wrong in between is a failure of this scenario only."""
    begin_s, meter = time.monotonic(), LoadMeter([os.getpid()])
    limit_s = LIMIT_S + (60 * lab.minutes if scenario is long_scenarios.soak else 0)

    async def run() -> Outcome:
        async with asyncio.timeout(limit_s):
            return await scenario(lab)

    try:
        outcome = asyncio.run(run())
    except Exception as error:
        outcome = Outcome("was broken off", failures=[f"{type(error).__name__}: {error}"])
    outcome.duration_s = round(time.monotonic() - begin_s, 1)
    outcome.foreign_cpu_percent = round(meter.read().foreign_cpu_percent, 1)
    return outcome


def _tell(outcome: Outcome) -> None:
    verdict = "holds" if outcome.is_good else "FAILS: " + "; ".join(outcome.failures[:3])
    print(f"chaos:   {verdict}, {outcome.duration_s:g} s", file=sys.stderr, flush=True)


def _duty(scenario: Scenario) -> str:
    return " ".join((scenario.__doc__ or "").split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/chaos", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="*", type=_known, metavar="SCENARIO", help="(default: all but soak)")
    add("--list", action="store_true", help="say what there is, and stop")
    add("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    add("--minutes", type=float, default=10.0, help="of the soak (default: 10)")
    add("--seed", type=int, default=1, help="of the random moments (default: 1)")
    return parser


def _known(name: str) -> str:
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"unknown {name!r}: see scripts/chaos --list")
    return name
