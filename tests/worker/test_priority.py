"""Who goes first: better classes, then earlier arrivals, and in the end everybody."""

from __future__ import annotations

from random import Random
from time import perf_counter

import pytest

from chairlift.worker import scheduler as scheduler_module
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.scheduler import TOKENS_PER_CLASS, ContinuousScheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.static_scheduler import StaticScheduler
from tests.worker.scheduler_world import (
    BLOCK_SIZE,
    World,
    distinct_prompt,
    make_sequence,
    random_run,
)

ARRIVAL_TOKENS = 1  # served to one that `arrive`s: its prompt; nobody reads its only answer


def one_by_one() -> World:
    """Whoever is first runs alone."""
    return World(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=64)


def arrive(scheduler: ContinuousScheduler | StaticScheduler, priority: int) -> Sequence:
    sequence = make_sequence([7], max_tokens=1)
    sequence.priority = priority
    scheduler.add(sequence)
    return sequence


def serve(scheduler: ContinuousScheduler | StaticScheduler) -> list[Sequence]:
    """A step, after which all that were in it are through."""
    plan = scheduler.plan()
    scheduler.advance(plan)
    scheduler.land(plan)
    for sequence in plan.sampled:
        scheduler.remove(sequence)
    return plan.sampled


def test_better_classes_board_first_and_equals_in_order_of_arrival() -> None:
    """The class is the first order, the arrival the second."""
    world = one_by_one()
    classes = [0, 5, -3, 0, 100, -100, 5, -3]
    arrivals = [world.add([n], 1, priority=p) for n, p in enumerate(classes)]
    world.drain()
    expected = sorted(zip(classes, range(len(classes)), strict=True))
    assert world.finished == [arrivals[number] for _, number in expected]


def test_static_batches_board_in_the_same_order() -> None:
    """The measuring stick has no other queue."""
    scheduler = StaticScheduler(
        BlockManager(32, BLOCK_SIZE), max_num_seqs=2, max_num_batched_tokens=64
    )
    worse, normal, better = (arrive(scheduler, priority) for priority in (1, 0, -1))
    assert [serve(scheduler) for _ in range(2)] == [[better, normal], [worse]]


def test_newcomer_of_a_better_class_is_read_before_a_long_prompt() -> None:
    """Its prompt goes ahead of the chunks of a worse one that has begun."""
    world = World(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=16)
    worse = world.add(distinct_prompt(0, 100), 2)
    world.step()
    better = world.add(distinct_prompt(1, 9), 2, priority=-1)
    plan = world.step()
    assert [(e.sequence, e.num_tokens) for e in plan.entries] == [(better, 9), (worse, 4)]
    world.drain()


def test_blocks_are_taken_from_the_newest_of_the_worst_class() -> None:
    """One after the other, and from the oldest of the best class never."""
    world = World(num_blocks=16, max_num_seqs=5, max_num_batched_tokens=64)
    classes = [2, 0, 2, 1, 0]
    sequences = [world.add(distinct_prompt(n, 7), 20, priority=p) for n, p in enumerate(classes)]
    preempted: list[int] = []
    while world.scheduler.has_work:
        world.step()
        for number, sequence in enumerate(sequences):
            if sequence.is_protected and number not in preempted:
                preempted.append(number)
    assert preempted[:3] == [2, 0, 3]
    assert 1 not in preempted


def test_preempted_one_takes_its_old_place() -> None:
    """Behind those that were ahead of it, ahead of all that came later in its class."""
    world = World(num_blocks=32, max_num_seqs=3, max_num_batched_tokens=64)
    first, second, third = (world.add(distinct_prompt(n, 7), 20) for n in range(3))
    world.step()
    late = world.add(distinct_prompt(3, 7), 20)
    better = world.add(distinct_prompt(4, 7), 20, priority=-1)
    for sequence in (third, second):
        world.scheduler._preempt(sequence)
        world.lives[sequence].computed = 0
    assert world.scheduler.waiting == [better, second, third, late]
    world.step()
    assert world.scheduler.running == [better, first, second]
    world.drain()


@pytest.mark.parametrize("difference", [1, 2, 7])
def test_a_class_is_worth_so_many_arrivals(
    difference: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better one arrives with every step that serves one: the worse one is overtaken by as many
    as its class says, and then it is its turn."""
    monkeypatch.setattr(scheduler_module, "TOKENS_PER_CLASS", 5 * ARRIVAL_TOKENS)
    scheduler = one_by_one().scheduler
    worse = arrive(scheduler, difference)
    served: list[Sequence] = []
    for _ in range(50):
        arrive(scheduler, 0)
        served += serve(scheduler)
    assert served.index(worse) == 5 * difference


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_overtaken_by_more_than_the_bound(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever arrives in whatever order, more than can be served: every request is served, and
    those of each class that came later and went first are no more than the classes' distance and
    its own class's queue allow."""
    monkeypatch.setattr(scheduler_module, "TOKENS_PER_CLASS", 4 * ARRIVAL_TOKENS)
    random, scheduler = Random(seed), one_by_one().scheduler
    arrivals: list[Sequence] = []
    served: list[int] = []
    backlogs: list[int] = []
    while len(arrivals) < 200 or scheduler.has_work:
        for _ in range(random.choice([0, 0, 1, 3]) if len(arrivals) < 200 else 0):
            priority = random.randint(-1, 3)
            backlogs.append(sum(s.priority == priority for s in scheduler.waiting))
            arrivals.append(arrive(scheduler, priority))
        served += [arrivals.index(sequence) for sequence in serve(scheduler)]
    assert sorted(served) == list(range(len(arrivals)))
    for place, number in enumerate(served):
        overtaking = [later for later in served[:place] if later > number]
        own = arrivals[number].priority
        num_ahead = backlogs[number]  # of its class, when it came
        for priority in range(-1, 4):
            num_later = sum(arrivals[later].priority == priority for later in overtaking)
            assert num_later <= max(0, 2 * num_ahead + 3 + 4 * (own - priority))
            assert priority != own or not num_later, "an equal overtook"


def test_a_full_queue_goes_by_class() -> None:
    """Among all that a worker lets wait by default, the last of a better class is first."""
    scheduler = one_by_one().scheduler
    for _ in range(1024):
        arrive(scheduler, 1)
    assert scheduler.num_waiting * ARRIVAL_TOKENS < TOKENS_PER_CLASS
    better = arrive(scheduler, 0)
    assert serve(scheduler) == [better]


@pytest.mark.parametrize("tokens_per_class", [1, 30, TOKENS_PER_CLASS])
def test_random_runs_with_classes_keep_every_rule(
    tokens_per_class: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small worlds of the scheduler's tests, with ageing in the short time that they last."""
    monkeypatch.setattr(scheduler_module, "TOKENS_PER_CLASS", tokens_per_class)
    num_preemptions = 0
    for seed in range(400):
        try:
            num_preemptions += random_run(seed, classes=4).scheduler.num_preemptions
        except AssertionError as error:
            raise AssertionError(f"random_run({seed}, classes=4): {error}") from error
    assert num_preemptions > 100


def test_suspects_keep_their_order_whatever_their_class() -> None:
    """They go one after the other, the oldest first; among the others they are what they are."""
    world = World(num_blocks=32, max_num_seqs=4, max_num_batched_tokens=64)
    worse = world.add(distinct_prompt(0, 5), 9, is_suspect=True, priority=3)
    better = world.add(distinct_prompt(1, 5), 9, is_suspect=True, priority=-3)
    other = world.add(distinct_prompt(2, 5), 9)
    assert [entry.sequence for entry in world.step().entries] == [worse]
    assert [entry.sequence for entry in world.step().entries] == [worse, other]
    assert [entry.sequence for entry in world.step().entries] == [better]
    assert world.scheduler.running == [better, other, worse]
    world.drain()


def test_a_queue_of_thousands_is_cheap_to_leave() -> None:
    """Cancelled from anywhere in it, each finds its place without looking at the others."""
    scheduler = one_by_one().scheduler
    random = Random(1)
    arrivals = [arrive(scheduler, random.randint(-100, 100)) for _ in range(5000)]
    assert (scheduler.num_waiting, scheduler.num_waiting_tokens) == (5000, 5000)
    random.shuffle(arrivals)
    started = perf_counter()
    for left, sequence in zip(range(4999, -1, -1), arrivals, strict=True):
        scheduler.remove(sequence)
        assert (scheduler.num_waiting, scheduler.num_waiting_tokens) == (left, left)
    assert perf_counter() - started < 20.0  # 0.05 s when the machine is idle
    assert not scheduler.has_work
