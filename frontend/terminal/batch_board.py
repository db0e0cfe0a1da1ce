"""The newest steps of a worker and the requests in them: what there is to show of a batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ...shared.messages import Steps
from ...shared.steps import Ended, Row, StepRecord, split_hashes
from ..lanes import Lanes
from .watched_request import WatchedRequest

MAX_COLUMNS = 1024  # wider than terminals are
LOST_AFTER = 64  # steps without a sign of a request whose end may have been missed


@dataclass(slots=True)
class Cell:
    """What became of one request in one step. Without a row the step had no room for it."""

    request: WatchedRequest
    row: Row | None = None
    is_preempted: bool = False
    ending: str = ""  # the reason, where this is the last of it


@dataclass(frozen=True, slots=True)
class Column:
    """One step."""

    record: StepRecord
    cells: dict[int, Cell] = field(default_factory=dict)  # by lane
    gaps_us: list[int] = field(default_factory=list)  # between two tokens of a request


@dataclass(frozen=True, slots=True)
class Gap:
    """Steps that were not told; none of them are, and another worker has come."""

    num_missed: int = 0


class BatchBoard:
    """Takes the step feed in. A request keeps its lane until its end; then another may have it."""

    def __init__(self) -> None:
        self.columns: deque[Column | Gap] = deque(maxlen=MAX_COLUMNS)
        self.num_steps = 0  # taken in
        self._living: dict[str, WatchedRequest] = {}
        self._lanes = Lanes()
        self._epoch: int | None = None
        self._number = 0  # of the last step
        self._lossy_until = 0

    @property
    def newest(self) -> StepRecord | None:
        column = self.columns[-1] if self.columns else None
        return column.record if isinstance(column, Column) else None

    @property
    def num_running(self) -> int:
        """Requests in the newest step that have not ended."""
        return sum(request.last_number == self._number for request in self._living.values())

    def last(self, count: int) -> list[Column | Gap]:
        """The newest columns, oldest first."""
        return list(self.columns)[-count:] if count > 0 else []

    def add(self, steps: Steps) -> None:
        if steps.epoch != self._epoch:
            self._begin(steps.epoch)
        for record in steps.records:
            self._add_step(record)
        for ended in steps.ended:
            self._end(ended)
        if self._number <= self._lossy_until:
            self._forget_the_lost()

    def calm(self) -> None:
        """Nothing runs at the worker: whose end was missed has ended."""
        for request in [*self._living.values()]:
            self._lose(request)

    def _begin(self, epoch: int) -> None:
        """Another worker: what it goes on with it tells anew."""
        self.calm()
        if self._epoch is not None:
            self.columns.append(Gap())
        self._epoch, self._number, self._lossy_until = epoch, 0, 0

    def _add_step(self, record: StepRecord) -> None:
        if self._number and record.number > self._number + 1:
            self.columns.append(Gap(record.number - self._number - 1))
            self._lossy_until = record.number + LOST_AFTER
        self._number = record.number
        self.num_steps += 1
        column = Column(record)
        ended_us = record.began_us + record.duration_us
        for row in record.rows():
            request = self._request(row.request)
            gap_us = request.take(row, record.number, ended_us)
            if gap_us is not None:
                column.gaps_us.append(gap_us)
            column.cells[self._lanes.lane_of(row.request)] = Cell(request, row)
        for hash in split_hashes(record.preempted):
            self._preempt(column, hash)
        for hash, request in self._living.items():
            column.cells.setdefault(self._lanes.lane_of(hash), Cell(request))
        self.columns.append(column)

    def _request(self, hash: str) -> WatchedRequest:
        if hash not in self._living:
            self._living[hash] = WatchedRequest(hash)
        return self._living[hash]

    def _preempt(self, column: Column, hash: str) -> None:
        request = self._request(hash)
        request.lose_blocks()
        cell = column.cells.setdefault(self._lanes.lane_of(hash), Cell(request))
        cell.is_preempted = True

    def _end(self, ended: Ended) -> None:
        """Its last row says so. Another may have the lane from the next message on."""
        request = self._living.pop(ended.request.hex(), None)
        if request is None:
            return
        request.ended = ended
        lane = self._lanes.lane_of(request.hash)
        for column in reversed(self.columns):
            cell = column.cells.get(lane) if isinstance(column, Column) else None
            if cell is None or cell.request is not request:
                break
            if cell.row is not None:
                cell.ending = ended.reason
                break
        self._lanes.leave(request.hash)

    def _lose(self, request: WatchedRequest) -> None:
        request.is_lost = True
        self._living.pop(request.hash)
        self._lanes.leave(request.hash)

    def _forget_the_lost(self) -> None:
        for request in [*self._living.values()]:
            if request.last_number < self._number - LOST_AFTER:
                self._lose(request)
