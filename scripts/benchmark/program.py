"""A measurement as a program of its own: the job in one file, the run to another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from chairlift.shared.errors import ChairliftError

from .errors import BenchmarkError
from .figures import Run
from .job import Job


def main(measure: Callable[[Job], Run]) -> int:
    """The files' names are the program's arguments."""
    job_file, run_file = map(Path, sys.argv[1:])
    try:
        run = measure(msgspec.json.decode(job_file.read_bytes(), type=Job))
    except (BenchmarkError, ChairliftError) as error:
        print(error, file=sys.stderr)
        return 1
    run_file.write_bytes(msgspec.json.encode(run))
    return 0
