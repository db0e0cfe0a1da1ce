"""The page of memory between worker and parent: what is written is read, even after a crash."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from chairlift.worker.pulse import MAX_CLEARED, Pulse, State, Wish

IDS = [bytes([number]) * 16 for number in range(8)]
request_ids = st.sampled_from(IDS)
calls = st.one_of(
    st.tuples(st.just("begin_step"), st.lists(request_ids, unique=True)),
    st.tuples(st.just("end_step")),
    st.tuples(st.just("clear"), request_ids),
    st.tuples(st.just("beat")),
)

# Steps of 1 to 8 equal ids, each killed at some moment: what is left must be one whole step.
KILLED_IN_A_STEP = """
import os, random, signal, time
from itertools import cycle
from chairlift.worker.pulse import Pulse

for trial in range(20):
    pulse = Pulse(8)
    pid = os.fork()
    if pid == 0:
        for size in cycle(range(1, 9)):
            pulse.begin_step([bytes([size]) * 16] * size)
            if size % 2:
                pulse.end_step()
    while pulse.num_steps == 0:
        time.sleep(0.001)
    time.sleep(random.random() * 0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    left = pulse.step_request_ids
    assert left == [bytes([len(left)]) * 16] * len(left), left
print("whole")
"""


@given(st.lists(calls, max_size=40))
def test_what_was_written_is_read(history: list[tuple[str, object]]) -> None:
    """Any sequence of calls leaves what a plain list of them would."""
    pulse, in_step, cleared = Pulse(len(IDS)), [], []
    num_steps = num_turns = 0
    for name, *arguments in history:
        getattr(pulse, name)(*arguments)
        match name:
            case "begin_step":
                in_step = arguments[0]
            case "end_step":
                in_step, num_steps = [], num_steps + 1
            case "clear":
                cleared.append(arguments[0])
            case "beat":
                num_turns += 1
        assert pulse.step_request_ids == in_step
        assert pulse.cleared_request_ids == cleared
        assert (pulse.num_steps, pulse.num_turns) == (num_steps, num_turns)


def test_reset_forgets_everything() -> None:
    """The next worker starts with a clean page."""
    pulse = Pulse(2)
    pulse.beat()
    pulse.begin_step(IDS[:2])
    pulse.end_step()
    pulse.begin_step(IDS[:1])
    pulse.clear(IDS[3])
    pulse.state, pulse.wish = State.DRAINING, Wish.STOP
    pulse.reset()
    assert (pulse.num_turns, pulse.num_steps) == (0, 0)
    assert (pulse.state, pulse.wish) == (State.LOADING, Wish.RUN)
    assert pulse.step_request_ids == pulse.cleared_request_ids == []


def test_more_than_fits_is_left_out() -> None:
    """A step larger than expected and endless clearing write nothing beyond their places."""
    pulse = Pulse(2)
    pulse.begin_step(IDS[:3])
    for _ in range(MAX_CLEARED + 1):
        pulse.clear(IDS[7])
    assert pulse.step_request_ids == IDS[:2]
    assert pulse.cleared_request_ids == [IDS[7]] * MAX_CLEARED


def test_a_killed_worker_leaves_a_whole_step() -> None:
    """The parent reads the ids of one step, or none, whatever instant the fork was killed at."""
    command = [sys.executable, "-c", KILLED_IN_A_STEP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "whole\n", done.stderr
