"""scripts/mutants: breaks a copy of the package in known ways; the simulation must notice each."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .catalog import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("frontend", "worker", "shared")
MAX_SEEDS = 3000
TIMEOUT_S = 900
IGNORED = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True)
class Result:
    """How the simulation took a mutant; without a rule it did not notice."""

    mutant: Mutant
    num_seeds: int
    rule: str

    def __str__(self) -> str:
        how = f"after {self.num_seeds} seeds: {self.rule}" if self.rule else "SURVIVES"
        return f"| {self.mutant.name} | {how} |"


def try_out(mutant: Mutant) -> Result:
    """In a copy of the package, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        mutant.apply(folder / "chairlift")
        command = [sys.executable, "-m", "tests.mutants.probe", str(MAX_SEEDS)]
        command += mutant.wanted
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Result(mutant, MAX_SEEDS, "it comes to an end")
    if done.returncode:
        raise RuntimeError(f"mutant {mutant.name!r} could not be tried:\n{done.stderr}")
    num_seeds, _, rule = done.stdout.strip().partition(" ")
    return Result(mutant, int(num_seeds), rule)


def copy_package(folder: Path) -> None:
    """chairlift with its parts, where the repository has links, and the simulation."""
    package = folder / "chairlift"
    package.mkdir()
    for file in ("__init__.py", "__main__.py", "py.typed"):
        shutil.copy(ROOT / "chairlift" / file, package)
    for part in FOLDERS:
        shutil.copytree(ROOT / part, package / part, ignore=IGNORED)
    for part in ("simulation", "mutants"):
        shutil.copytree(ROOT / "tests" / part, folder / "tests" / part, ignore=IGNORED)


def chosen(names: Iterable[str], num_sampled: int | None) -> list[Mutant]:
    """Raises ValueError for a name that no mutant has."""
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"no mutant is called {unknown[0]!r}")
    mutants = [by_name[name] for name in names] or [*MUTANTS]
    return random.sample(mutants, min(num_sampled, len(mutants))) if num_sampled else mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them by default")
    parser.add_argument("--sample", type=int, metavar="N", help="only N, drawn at random")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    try:
        mutants = chosen(arguments.names, arguments.sample)
    except ValueError as error:
        parser.error(str(error))
    results: list[Result] = []
    print("| mutant | caught |\n|---|---|", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for result in pool.map(try_out, mutants):
                results.append(result)
                print(result, flush=True)
        except ValueError as error:  # a text that is not there any more
            pool.shutdown(cancel_futures=True)
            print(error, file=sys.stderr)
            return 1
    survivors = [result.mutant.name for result in results if not result.rule]
    print(f"\n{len(results) - len(survivors)} of {len(results)} caught")
    return int(bool(survivors))


if __name__ == "__main__":
    raise SystemExit(main())
