"""What many streams gave, held against what they must give, and how long they paused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.integration.workload import Record

Expected = dict[int, Record]  # by number of the request


@dataclass(slots=True)
class Verdict:
    """Streams by what is wrong with them; a stream that was refused was never promised."""

    num_whole: int = 0
    num_refused: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.wrong, *self.stuck]


def audit(records: Iterable[Record], expected: Expected) -> Verdict:
    verdict = Verdict()
    for record in records:
        if record.is_refused:
            verdict.num_refused += 1
        else:
            _judge(record, expected[record.number], verdict)
    return verdict


def _judge(record: Record, expected: Record, verdict: Verdict) -> None:
    """By tokens; by characters where the reader saw no tokens."""
    is_text = not record.token_ids
    got = record.text if is_text else record.token_ids
    wanted = expected.text if is_text else expected.token_ids
    num_equal = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), len(got))  # noqa: B905
    where = f"request {record.number}: {record.reason} {record.code}, {len(got)} of {len(wanted)}"
    if record.num_ends == 0:
        verdict.stuck.append(where)
    elif record.num_ends > 1 or len(got) > len(wanted):
        verdict.doubled.append(where)
    elif num_equal == len(got) < len(wanted):
        verdict.lost.append(where)
    elif (got, record.text, record.reason) != (wanted, expected.text, expected.reason):
        verdict.wrong.append(f"{where}, differs at {num_equal}")
    else:
        verdict.num_whole += 1


def pauses_s(records: Iterable[Record], begin_s: float, end_s: float) -> list[float]:
    """For each stream that was running when a fault began and outlived it: how long after its
    end the next token came."""
    found = []
    for record in records:
        arrivals = record.arrivals_s
        if arrivals and arrivals[0] < begin_s and arrivals[-1] > end_s:
            found.append(next(t for t in arrivals if t > end_s) - end_s)
    return found


def gaps_s(records: Iterable[Record], begin_s: float, end_s: float) -> list[float]:
    """Between one delivery and the next of the same stream, within this time."""
    return [
        after - before
        for record in records
        for before, after in pairwise(record.arrivals_s)
        if begin_s <= before and after <= end_s
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; 0.0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
