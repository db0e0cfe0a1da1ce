"""Which request is at fault when a step fails, and what it is told. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from ..shared.logs import short_hash
from ..shared.messages import Finish
from .grammar import GrammarError
from .scheduler import Plan
from .sequence import Sequence

MEMORY_ERRORS = ("out of memory", "not enough memory", "can't allocate memory")  # says torch

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A sequence whose part of the step can't be computed, and how it ends."""

    sequence: Sequence
    finish: Finish


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of a plan: the part that was computed, with its results, and the rest."""

    plan: Plan
    results: list[T]  # of `plan.entries`
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: Outcome[T]) -> Outcome[T]:
        return Outcome(
            Plan(self.plan.entries + other.plan.entries),
            self.results + other.results,
            self.failures + other.failures,
        )


def run_in_halves(plan: Plan, run: Callable[[Plan], list[T]]) -> Outcome[T]:
    """Runs the plan; if that fails its halves, and so on: who fails alone is at fault.

    `run` gives `plan.entries` their results. It is called at most twice for every entry, and has to
    be independent of the neighbours and repeatable: what failed may have written to the KV cache.
    """
    try:
        return Outcome(plan, run(plan))
    except Exception as error:
        if len(plan.entries) == 1:
            sequence = plan.entries[0].sequence
            return Outcome(Plan(()), [], (Failure(sequence, finish_of(sequence, error)),))
        log.warning("a step failed: running its halves", size=len(plan.entries), why=repr(error))
    # Not in the except clause, where the traceback holds on to the memory of what failed.
    middle = len(plan.entries) // 2
    first = run_in_halves(Plan(plan.entries[:middle]), run)
    return first + run_in_halves(Plan(plan.entries[middle:]), run)


def error_of(action: Callable[[], object]) -> BaseException | None:
    """What one sequence's own parts raise when they do `action`; None when it is done."""
    try:
        action()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a library written in Rust is no Exception
        return error
    return None


def finish_of(sequence: Sequence, error: BaseException) -> Finish:
    """How a sequence ends that the error is about; the log gets the details, unless the request
    itself is at fault."""
    if isinstance(error, GrammarError):
        return error.finish
    name = short_hash(sequence.request_id)
    log.error("a request failed", request=name, exc_info=error)
    if isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_ERRORS):
        return Finish(
            "error",
            code="out_of_memory",
            message="the worker ran out of memory over this request; other requests are not "
            "affected. Send a shorter prompt, or run the worker with a smaller "
            "--max-num-batched-tokens",
        )
    return Finish(
        "error",
        code="internal_error",
        message="the worker failed over this request; other requests are not affected. Its log "
        f"has the reason, under request {name}",
    )
