"""Steps and requests as a trace for Perfetto (https://ui.perfetto.dev) or chrome://tracing.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..shared.messages import Steps
from ..shared.steps import PHASES, Ended, Row, StepRecord, split_hashes
from .lanes import Lanes

Json = dict[str, Any]

WORKER = 1  # process ids, as far as the trace goes
FIRST_FRONTEND = 2
STEPS = 1  # the thread of the worker's steps; a request's row is a thread as well
FIRST_ROW = 2


class HttpRequest(msgspec.Struct, frozen=True):
    """As `requests` events of GET /watch tell of it; moments in microseconds since 1970."""

    requests: list[str]  # hashes of its generations
    endpoint: str
    outcome: str
    began_us: int
    submitted_us: int
    first_token_us: int | None
    ended_us: int


class Timeline:
    """Collects the events of a trace. Times are microseconds since 1970."""

    def __init__(self) -> None:
        self._events: list[Json] = []
        self._names: dict[tuple[int, int], str] = {}
        self._frontends: list[str] = []
        self._rows = Lanes()
        self._epoch: int | None = None
        self._last_ends: dict[str, int] = {}  # of the requests that have rows
        self.num_steps = 0
        self.num_requests = 0  # that frontends told of

    def add_steps(self, steps: Steps) -> None:
        if steps.epoch != self._epoch:  # nobody tells of the ends of a worker that died
            self._epoch = steps.epoch
            self._rows, self._last_ends = Lanes(), {}
        for record in steps.records:
            self._add_step(record)
        for ended in steps.ended:
            self._add_end(ended)

    def add_requests(self, frontend: str, requests: Sequence[HttpRequest]) -> None:
        if frontend not in self._frontends:
            self._frontends.append(frontend)
        process = FIRST_FRONTEND + self._frontends.index(frontend)
        self._names[process, 0] = f"frontend {frontend}"
        for request in requests:
            self._add_request(process, request)

    def as_json(self) -> Json:
        """The whole trace; `json.dump` it."""
        names = {(WORKER, 0): "worker", (WORKER, STEPS): "steps", **self._names}
        named = [
            {
                "ph": "M",
                "name": "thread_name" if thread else "process_name",
                "pid": process,
                "tid": thread,
                "args": {"name": name},
            }
            for (process, thread), name in names.items()
        ]
        return {"traceEvents": named + self._events, "displayTimeUnit": "ms"}

    def _add_step(self, record: StepRecord) -> None:
        self.num_steps += 1
        began, rows = record.began_us, [*record.rows()]
        num_rows, num_tokens = len(rows), sum(row.num_tokens for row in rows)
        args = {"number": record.number, "rows": num_rows, "tokens": num_tokens}
        self._span((WORKER, STEPS), f"step {record.number}", began, record.duration_us, args)
        for phase, duration in zip(PHASES, record.phases_us, strict=True):
            if duration:
                self._span((WORKER, STEPS), phase, began, duration)
            began += duration
        for row in rows:
            self._add_row(record, row)
        for request in split_hashes(record.preempted):
            self._mark(request, f"preempted {request}", record.began_us)
        prompt, output = sum(record.num_prompt_tokens), sum(record.num_new_tokens)
        self._count("requests", record, running=num_rows, waiting=record.num_waiting)
        self._count("tokens in the step", record, prompt=prompt, output=output)
        self._count("blocks", record, free=record.num_free_blocks, shared=record.num_shared_blocks)

    def _add_row(self, record: StepRecord, row: Row) -> None:
        self._last_ends[row.request] = record.began_us + record.duration_us
        lane = self._rows.lane_of(row.request)
        self._names[WORKER, FIRST_ROW + lane] = f"row {lane + 1}"
        args = {
            "request": row.request,
            "computed": row.num_computed_tokens,
            "total": row.num_total_tokens,
            "new": row.num_new_tokens,
            "drafts": row.num_drafts,
            "blocks": row.num_blocks,
        }
        name = f"prefill {row.num_tokens}" if row.is_chunk else "decode"
        track = (WORKER, FIRST_ROW + lane)
        self._span(track, name, record.began_us, record.duration_us, args)

    def _add_end(self, ended: Ended) -> None:
        request, receipt = ended.request.hex(), ended.receipt
        if request not in self._last_ends:  # it ran before we came
            return
        args = {name: getattr(receipt, name) for name in receipt.__struct_fields__}
        self._mark(request, f"{ended.reason} {request}", self._last_ends.pop(request, 0), args)
        self._rows.leave(request)

    def _add_request(self, process: int, request: HttpRequest) -> None:
        """On a thread of its own: requests of one frontend overlap."""
        self.num_requests += 1
        track = (process, self.num_requests)
        began, ended = request.began_us, request.ended_us
        first_token = request.first_token_us or ended
        name = f"{request.endpoint} {' '.join(request.requests)}"
        self._names[track] = name
        args = {"outcome": request.outcome}
        self._span(track, name, began, ended - began, args)
        borders = [began, request.submitted_us, first_token, ended]
        stages = ("before the worker", "to the first token", "to the end")
        for stage, start, stop in zip(stages, borders, borders[1:], strict=False):
            if stop > start:
                self._span(track, stage, start, stop - start)

    def _span(
        self,
        track: tuple[int, int],
        name: str,
        began: int,
        duration: int,
        args: Json | None = None,
    ) -> None:
        process, thread = track
        place = {"pid": process, "tid": thread, "ts": began, "dur": duration}
        self._events.append({"ph": "X", "name": name, **place, "args": args or {}})

    def _mark(self, request: str, name: str, at: int, args: Json | None = None) -> None:
        """A moment on the request's row."""
        thread = FIRST_ROW + self._rows.lane_of(request)
        place = {"pid": WORKER, "tid": thread, "ts": at, "s": "t"}
        self._events.append({"ph": "i", "name": name, **place, "args": args or {}})

    def _count(self, name: str, record: StepRecord, **values: int) -> None:
        place = {"pid": WORKER, "tid": 0, "ts": record.began_us}
        self._events.append({"ph": "C", "name": name, **place, "args": values})
