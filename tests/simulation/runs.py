"""One seed after the other, and what came of them all."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from .limits import small_limits
from .simulation import Simulation
from .violation import Violation


@dataclass(frozen=True)
class Failure:
    """A seed that found something."""

    seed: int
    rule: str  # that is violated
    details: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed} violates: {self.rule}\n  {self.details}\n"
            f"  scripts/simulate --replay {self.seed}"
        )


def run_seed(seed: int, counts: Counter[str], wanted: Collection[str] = ()) -> Failure | None:
    """One simulation, with the `wanted` kinds of trouble; adds what happened to `counts`."""
    simulation = Simulation(seed, wanted=wanted)
    try:
        simulation.run()
    except Violation as violation:
        return Failure(seed, violation.rule, str(violation))
    except Exception as error:
        return Failure(seed, "nothing raises", f"{type(error).__name__}: {error}, {_place(error)}")
    counts["seeds"] += 1
    counts.update(simulation.counts)
    return None


def run_seeds(
    seeds: Iterable[int], counts: Counter[str], wanted: Collection[str] = ()
) -> Iterator[Failure]:
    with quiet(), small_limits():
        for seed in seeds:
            failure = run_seed(seed, counts, wanted)
            if failure is not None:
                yield failure


def replay(seed: int) -> None:
    """Prints all that happens; raises what it finds."""
    with quiet(), small_limits():
        Simulation(seed, print).run()


@contextmanager
def quiet() -> Iterator[None]:
    """The cores' own log would tell of every request and every death."""
    former = structlog.get_config()
    level = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=level)
    try:
        yield
    finally:
        structlog.configure(**former)


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
