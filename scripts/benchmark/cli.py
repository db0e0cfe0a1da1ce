"""Measures chairlift on synthetic models; docs/benchmarks.md says what models and workloads are."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from . import feed, frontend, int8, load, options, peers, policies, scenarios, speculation
from .errors import BenchmarkError
from .machine import Machine
from .report import Report, Section

# Each has `add_parser(modes)`, which names `measure(options)`: what it yields is saved at once.
MODES = (policies, scenarios, load, peers, speculation, int8, feed, frontend)
ALL = (  # what docs/benchmarks.md shows
    "offline --model S --workload W1 --repeats 3",
    "offline --model S --workload decode-heavy --repeats 3",
    "offline --model M --workload W1",
    "http --model S --workload W1 --repeats 3",
    "http --model M --workload W1",
    "peers --model S --workload W1 --repeats 3",
    "peers --model M --workload W1",
    "peers --model S --workload W3",
    "peers --model M --workload W3",
    "load --model S",
    "load --model M",
    "attack --model M",
    "crowd --model M",
    "prefix --model M",
    "speculation",
    "feed --model S --repeats 15",
    "frontend --repeats 3 --seconds 8",
    "frontend --streams 64 --variants chat --repeats 3 --seconds 8",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _measure(chosen, shlex.join(["scripts/bench", *arguments]))
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(*_: object) -> NoReturn:
    """Ends as Ctrl-C does, so that every process is stopped."""
    raise KeyboardInterrupt


def _measure(chosen: argparse.Namespace, command: str) -> None:
    """Saves after each run, so that an interrupted one is not for nothing."""
    report = Report(command, Machine.this(), [])
    files: list[Path] = []
    for case in chosen.measure(chosen):
        report.put(case)
        name = "all" if chosen.mode == "all" else report.cases[0].title
        files = report.save(chosen.output / name)
    print(report.markdown())
    print(*(f"wrote {file}" for file in files), sep="\n", file=sys.stderr)


def _measure_all(chosen: argparse.Namespace) -> Iterator[Section]:
    for line in ALL:
        print(f"bench: {line}", file=sys.stderr)
        one = parser().parse_args([*line.split(), "--timeout", str(chosen.timeout)])
        yield from one.measure(one)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("scripts/bench", description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True)
    for mode in MODES:
        mode.add_parser(modes)
    every = modes.add_parser("all", help="what docs/benchmarks.md shows; takes hours")
    options.add_output(every)
    every.set_defaults(measure=_measure_all)
    return top
