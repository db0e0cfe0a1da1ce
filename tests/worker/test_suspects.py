"""Requests that may have killed a worker: each runs alone first, and delays the others little."""

from __future__ import annotations

from itertools import count

import pytest

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.engine import Engine
from chairlift.worker.pulse import Pulse
from chairlift.worker.scheduler import ContinuousScheduler, Plan, Scheduler
from chairlift.worker.sequence import Sequence, Status
from chairlift.worker.static_scheduler import StaticScheduler
from tests.fake_engine import (
    CANCELLED,
    Size,
    make_engine,
    make_wish,
    output_of,
    run_alone,
    run_to_the_end,
    runner_of,
)

BLOCK_SIZE = 4
POLICIES = pytest.mark.parametrize("policy", [ContinuousScheduler, StaticScheduler])
_numbers = count()


def make_scheduler(
    num_blocks: int = 64,
    max_num_seqs: int = 4,
    budget: int = 16,
    policy: type[Scheduler] = ContinuousScheduler,
) -> Scheduler:
    manager = BlockManager(num_blocks, BLOCK_SIZE)
    return policy(manager, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)


def add(
    scheduler: Scheduler, num_prompt_tokens: int, max_tokens: int = 20, *, is_suspect: bool = False
) -> Sequence:
    number = next(_numbers)
    prompt = [1000 * (number + 1) + i for i in range(num_prompt_tokens)]
    params = SamplingParams(max_tokens=max_tokens)
    sequence = Sequence(number.to_bytes(16, "big"), prompt, params)
    sequence.is_suspect = is_suspect
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> list[Sequence]:
    """Who is in it."""
    plan: Plan = scheduler.plan()
    scheduler.advance(plan)
    scheduler.land(plan)
    for sequence in plan.sampled:
        sequence.append(1)
        if sequence.num_output_tokens == sequence.params.max_tokens:
            scheduler.remove(sequence)
    return [entry.sequence for entry in plan.entries]


def test_lone_steps_take_turns_with_common_ones() -> None:
    """A suspect's chunks alone, one step out of two; when it has a token it is one of many."""
    scheduler = make_scheduler()
    first, second = add(scheduler, 3), add(scheduler, 3)
    step(scheduler)
    suspect = add(scheduler, 40, is_suspect=True)
    common = [first, second]
    assert [step(scheduler) for _ in range(5)] == [[suspect], common, [suspect], common, [suspect]]
    assert not suspect.is_suspect
    assert suspect.num_output_tokens == 1
    assert step(scheduler) == [first, second, suspect]


def test_suspects_go_one_by_one_and_the_oldest_first() -> None:
    """Each has its own lone step, then its old place; the others of the queue board in between."""
    scheduler = make_scheduler(max_num_seqs=8)
    suspects = [add(scheduler, 3, is_suspect=True) for _ in range(3)]
    others = [add(scheduler, 3) for _ in range(2)]
    assert scheduler.num_waiting == 5
    steps = [step(scheduler) for _ in range(6)]
    assert steps[0::2] == [[suspects[0]], [suspects[1]], [suspects[2]]]
    assert steps[1::2] == [
        [suspects[0], *others],
        [*suspects[:2], *others],
        [*suspects, *others],
    ]
    assert scheduler.num_waiting == 0


def test_suspect_alone_in_the_worker_does_not_wait_for_its_turn() -> None:
    """Where there is no common work every step is a lone one."""
    scheduler = make_scheduler()
    suspect = add(scheduler, 40, is_suspect=True)
    assert [step(scheduler) for _ in range(4)] == [[suspect]] * 4
    assert suspect.num_output_tokens == 2


def test_suspect_without_room_waits_for_those_that_run_and_not_for_newcomers() -> None:
    """The running ones go on and finish, then it has its blocks, and then those that came later."""
    scheduler = make_scheduler(num_blocks=8)
    running = add(scheduler, 15, max_tokens=5)
    step(scheduler)
    suspect = add(scheduler, 25, max_tokens=7, is_suspect=True)  # all 8 blocks
    late = add(scheduler, 3)
    assert [step(scheduler) for _ in range(4)] == [[running]] * 4
    assert suspect.status is Status.WAITING
    assert late.status is Status.WAITING
    assert step(scheduler) == [suspect]
    assert suspect.status is Status.RUNNING
    while late.num_output_tokens < 20:
        assert step(scheduler)
    assert scheduler.block_manager.num_free_blocks == 8


def test_preempted_sequence_goes_on_ahead_of_a_suspect_without_room() -> None:
    """It was served before, so it has what becomes free first."""
    scheduler = make_scheduler(num_blocks=10, budget=40)
    oldest, short, preempted = (
        add(scheduler, 11),
        add(scheduler, 11, max_tokens=3),
        add(scheduler, 7),
    )
    step(scheduler)
    suspect = add(scheduler, 30, max_tokens=9, is_suspect=True)
    for _ in range(2):
        step(scheduler)
    assert short.status is Status.FINISHED
    assert preempted.is_protected
    assert step(scheduler) == [oldest, preempted]
    assert suspect.status is Status.WAITING
    while scheduler.has_work:
        assert step(scheduler)
    assert suspect.num_output_tokens == 9


def test_suspect_has_a_place_kept() -> None:
    """With its own, never more than `max_num_seqs` hold blocks."""
    scheduler = make_scheduler(max_num_seqs=2)
    suspect = add(scheduler, 40, is_suspect=True)
    others = [add(scheduler, 3, max_tokens=9) for _ in range(2)]
    steps = [step(scheduler) for _ in range(5)]
    assert steps == [[suspect], [others[0]], [suspect], [others[0]], [suspect]]
    assert scheduler.running == [suspect, others[0]]
    while others[1].status is Status.WAITING:
        assert len(step(scheduler)) <= 2
    assert others[0].status is Status.FINISHED


def test_the_oldest_waits_where_a_suspect_has_the_last_block() -> None:
    """It is not preempted, the suspect neither; the suspect gets its token and gives way then."""
    scheduler = make_scheduler(num_blocks=16, max_num_seqs=2, budget=6)
    oldest = add(scheduler, 3, max_tokens=40)
    step(scheduler)
    suspect = add(scheduler, 55, max_tokens=9, is_suspect=True)
    steps = []
    while suspect.is_suspect:
        steps.append(step(scheduler))
    assert steps == [[suspect], [oldest]] * 5 + [[suspect]] * 9
    while scheduler.has_work:
        assert step(scheduler)
    assert scheduler.num_preemptions == 1
    assert (oldest.num_output_tokens, suspect.num_output_tokens) == (40, 9)
    assert scheduler.block_manager.num_free_blocks == 16


def test_suspect_of_exactly_the_capacity_is_served() -> None:
    """In an empty cache as in one that empties."""
    scheduler = make_scheduler(num_blocks=8)
    other = add(scheduler, 20, max_tokens=12)
    step(scheduler)
    suspect = add(scheduler, 24, max_tokens=8, is_suspect=True)
    while scheduler.has_work:
        assert step(scheduler)
    assert (other.num_output_tokens, suspect.num_output_tokens) == (12, 8)


@POLICIES
@pytest.mark.parametrize("num_steps", range(6))
def test_cancel_of_a_suspect_frees_everything_at_any_moment(
    num_steps: int, policy: type[Scheduler]
) -> None:
    """Waiting, between two lone steps, or acquitted."""
    engine = make_engine(Size(num_blocks=16, budget=16), policy)
    suspect = make_wish([5] * 40, max_tokens=9).sequence(is_suspect=True)
    next_one = make_wish([6] * 9).sequence(is_suspect=True)
    for sequence in (suspect, next_one):
        engine.add(sequence)
    for _ in range(num_steps):
        engine.step()
    for sequence in (suspect, next_one):
        engine.end(sequence, CANCELLED)
        engine.end(sequence, Finish("error"))
        assert sequence.finish == CANCELLED
    scheduler = engine.scheduler
    assert not scheduler.has_work
    assert (scheduler.num_waiting, scheduler.num_waiting_tokens) == (0, 0)
    assert scheduler.block_manager.num_free_blocks == 16
    assert engine.step() == []


def test_static_batch_of_a_suspect_is_its_own() -> None:
    """Nobody is let on until it is done, as ever; then the others are a batch."""
    scheduler = make_scheduler(policy=StaticScheduler)
    others = [add(scheduler, 3, max_tokens=2) for _ in range(2)]
    suspect = add(scheduler, 5, max_tokens=3, is_suspect=True)
    assert scheduler.num_waiting == 3
    steps = []
    while scheduler.has_work:
        steps.append(step(scheduler))
    assert steps == [[suspect]] * 3 + [others] * 2
    assert scheduler.num_waiting_tokens == 0


def suspected_engine(policy: type[Scheduler], pulse: Pulse) -> tuple[Engine, list[Sequence]]:
    """Three suspects, the second of which may do harm, and three others."""
    engine = make_engine(Size(budget=16), policy, pulse=pulse)
    sequences = [
        make_wish([5 + n] * (7 * n + 1), ignore_eos=True).sequence(is_suspect=n % 2 == 0)
        for n in range(6)
    ]
    for sequence in sequences:
        engine.add(sequence)
    return engine, sequences


@POLICIES
def test_pulse_clears_suspects_that_ran_alone(policy: type[Scheduler]) -> None:
    """Each suspect, once, after the step in which it had its token; and nobody else."""
    pulse = Pulse.private()
    engine, sequences = suspected_engine(policy, pulse)
    suspects = [s for s in sequences if s.is_suspect]
    while engine.scheduler.has_work:
        engine.step()
        assert pulse.cleared_request_ids == [s.request_id for s in suspects if not s.is_suspect]
    assert len(pulse.cleared_request_ids) == 3


@POLICIES
def test_lone_steps_change_no_token(policy: type[Scheduler]) -> None:
    """Whoever is a suspect, all get what they get alone."""
    engine, sequences = suspected_engine(policy, Pulse.private())
    run_to_the_end(engine)
    for n, sequence in enumerate(sequences):
        wish = make_wish([5 + n] * (7 * n + 1), ignore_eos=True)
        assert output_of(sequence) == output_of(run_alone(wish))


@POLICIES
def test_suspect_that_fails_alone_is_not_cleared(policy: type[Scheduler]) -> None:
    """An error ends it like anybody else, and the next suspect has its turn."""
    pulse = Pulse.private()
    engine, sequences = suspected_engine(policy, pulse)
    bad = sequences[2]
    runner_of(engine).error_in = lambda plan: (
        MemoryError() if any(e.sequence is bad for e in plan.entries) else None
    )
    assert run_to_the_end(engine).count(bad) == 1
    assert bad.finish is not None
    assert bad.finish.code == "out_of_memory"
    assert pulse.cleared_request_ids == [sequences[0].request_id, sequences[4].request_id]
    assert all(s.finish == Finish("length") for s in sequences if s is not bad)
    assert engine.scheduler.block_manager.num_free_blocks == 64


def test_process_that_dies_in_a_lone_step_leaves_one_name() -> None:
    """What the parent reads then is the suspect, and no other."""
    pulse = Pulse.private()
    engine, sequences = suspected_engine(ContinuousScheduler, pulse)
    runner_of(engine).error_in = lambda plan: (
        KeyboardInterrupt() if plan.entries[0].sequence is sequences[2] else None
    )
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(engine)
    assert pulse.step_request_ids == [sequences[2].request_id]
    assert pulse.cleared_request_ids == [sequences[0].request_id]


def test_queue_of_suspects_counts_for_the_estimated_wait() -> None:
    """Those behind it wait for them as for anybody."""
    engine = make_engine(Size(max_num_seqs=1))
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    engine.times.clock = clock
    for _ in range(3):
        engine.add(make_wish([5], max_tokens=1).sequence())
        engine.step()
    without = engine.estimated_wait_ms()
    for _ in range(10):
        engine.add(make_wish([5]).sequence(is_suspect=True))
    assert engine.estimated_wait_ms() > without
