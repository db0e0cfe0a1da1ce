"""A trace for Perfetto: spans that nest, a lane for each row, counters, frontends' requests."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from msgspec.structs import replace

from chairlift.frontend.timeline import (
    FIRST_FRONTEND,
    FIRST_ROW,
    STEPS,
    WORKER,
    HttpRequest,
    Timeline,
)
from chairlift.shared.messages import Steps
from chairlift.shared.steps import PHASES, Ended, StepRecord, request_hash
from tests.golden_messages import OTHER, RECEIPT, REQUEST, STEP

Event = dict[str, Any]


def later(step: StepRecord, number: int, *requests: bytes) -> StepRecord:
    """The step again, so many after it, with these rows."""
    width = len(requests)
    columns = {name: column[:1] * width for name, column in step.columns.items()}
    return replace(
        step,
        number=step.number + number,
        began_us=step.began_us + number * 30_000,
        requests=b"".join(map(request_hash, requests)),
        preempted=b"",
        **columns,
    )


def trace_of(*messages: Steps) -> list[Event]:
    timeline = Timeline()
    for steps in messages:
        timeline.add_steps(steps)
    events: list[Event] = json.loads(json.dumps(timeline.as_json()))["traceEvents"]
    return events


def spans(events: list[Event], process: int = WORKER) -> dict[int, list[Event]]:
    """By thread."""
    found = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] == process:
            found[event["tid"]].append(event)
    return found


def check_nesting(track: list[Event]) -> None:
    """Two spans of a track lie apart or within one another: Perfetto shows nothing else right."""
    for number, one in enumerate(track):
        for other in track[number + 1 :]:
            first, second = sorted((one, other), key=lambda e: (e["ts"], -e["dur"]))
            end = first["ts"] + first["dur"]
            assert second["ts"] >= end or second["ts"] + second["dur"] <= end, (one, other)


def test_a_step_is_a_span_with_its_phases_within() -> None:
    """They follow one another and fill it."""
    track = spans(trace_of(Steps(1, [STEP], [])))[STEPS]
    check_nesting(track)
    step, *phases = track
    assert (step["name"], step["dur"]) == ("step 1234", STEP.duration_us)
    assert [phase["name"] for phase in phases] == [*PHASES]
    assert phases[0]["ts"] == step["ts"] == STEP.began_us
    assert sum(phase["dur"] for phase in phases) == step["dur"]


def test_rows_keep_their_lanes_and_leave_them_to_others() -> None:
    """A request's chunks and decodes are on one track; who comes after it may have it."""
    first, second = later(STEP, 1, REQUEST, OTHER), later(STEP, 2, OTHER, b"third-request-id")
    ended = Ended(request_hash(REQUEST), "stop", RECEIPT)
    events = trace_of(Steps(1, [STEP, first], [ended]), Steps(1, [second], []))
    tracks = spans(events)
    names = [[event["name"] for event in tracks[FIRST_ROW + lane]] for lane in (0, 1)]
    assert names == [["decode", "decode", "decode"], ["prefill 64", "decode", "decode"]]
    assert tracks[FIRST_ROW][-1]["args"]["request"] == request_hash(b"third-request-id").hex()
    (end,) = [event for event in events if event["name"].startswith("stop ")]
    assert (end["tid"], end["args"]["num_preemptions"]) == (FIRST_ROW, 1)
    assert any(e["name"].startswith("preempted ") for e in events if e["ph"] == "i")
    for track in tracks.values():
        check_nesting(track)


def test_counters() -> None:
    """The queue, the tokens and the blocks over time."""
    counted = {e["name"]: e["args"] for e in trace_of(Steps(1, [STEP], [])) if e["ph"] == "C"}
    assert counted == {
        "requests": {"running": 2, "waiting": 1},
        "tokens in the step": {"prompt": 64, "output": 1},
        "blocks": {"free": 100, "shared": 2},
    }


def test_requests_of_frontends_are_processes_beside_the_worker() -> None:
    """Each on a track of its own, with the time before the worker, to the first token, to the
    end."""
    timeline = Timeline()
    request = HttpRequest(
        requests=["0a1b2c3d"],
        endpoint="chat",
        outcome="stop",
        began_us=1_000,
        submitted_us=1_200,
        first_token_us=5_000,
        ended_us=9_000,
    )
    never = replace(request, first_token_us=None, outcome="overloaded")
    timeline.add_requests("http://a", [request, never])
    timeline.add_requests("http://b", [request])
    events = timeline.as_json()["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {
        WORKER: "worker",
        FIRST_FRONTEND: "frontend http://a",
        FIRST_FRONTEND + 1: "frontend http://b",
    }
    first, second = spans(events, FIRST_FRONTEND).values()
    assert [(e["name"], e["dur"]) for e in first] == [
        ("chat 0a1b2c3d", 8_000),
        ("before the worker", 200),
        ("to the first token", 3_800),
        ("to the end", 4_000),
    ]
    assert [e["name"] for e in second][1:] == ["before the worker", "to the first token"]
    check_nesting(first)
    check_nesting(second)
