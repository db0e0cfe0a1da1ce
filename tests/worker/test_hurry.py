"""Who is short of time overtakes, by so much and no more."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chairlift.worker import fair_share as fair_share_module
from chairlift.worker.fair_share import HEAD_START, FairShare
from chairlift.worker.scheduler import TOKENS_PER_CLASS
from chairlift.worker.sequence import Sequence
from tests.worker.scheduler_world import World, distinct_prompt, make_sequence, random_run

HASTY, CALM, NEWCOMER = b"hasty", b"calm", b"newcomer"


def one_by_one() -> World:
    return World(num_blocks=64, max_num_seqs=1, max_num_batched_tokens=64)


def add(world: World, count: int, tenant: bytes = b"") -> list[Sequence]:
    """Each of 8 tokens, its answer included."""
    number = len(world.arrivals)
    return [world.add(distinct_prompt(number + n, 6), 2, tenant=tenant) for n in range(count)]


def place_of(fair_share: FairShare, sequence: Sequence) -> float:
    return fair_share._accounts[sequence].tag - fair_share._accounts[sequence].head_start


def test_who_is_short_of_time_overtakes_its_own_tenants_earlier_ones() -> None:
    """A single tenant's queue, too, goes by who needs it."""
    world = one_by_one()
    sequences = add(world, 9)
    world.step()
    world.hurry(sequences[-1])
    world.drain()
    assert world.finished == [sequences[0], sequences[-1], *sequences[1:-1]]


def test_the_head_start_is_so_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine that wait, of eight tokens each, the last goes ahead of the three that 24 are."""
    monkeypatch.setattr(fair_share_module, "HEAD_START", 24)
    world = one_by_one()
    sequences = add(world, 9)
    world.hurry(sequences[-1])
    world.drain()
    assert world.finished == [*sequences[:5], sequences[5], sequences[-1], *sequences[6:-1]]


def test_among_the_hurried_the_order_stays() -> None:
    """Where everybody is short of time, nobody gains."""
    world = one_by_one()
    sequences = add(world, 9)
    for sequence in reversed(sequences):
        world.hurry(sequence)
        world.hurry(sequence)
    world.drain()
    assert world.finished == sequences


def test_a_better_class_is_worth_more_than_a_head_start() -> None:
    """What is short of time in a worse class waits for all of a better one that is there."""
    assert HEAD_START * 100 < TOKENS_PER_CLASS
    world = one_by_one()
    better = add(world, 3)
    worse = world.add(distinct_prompt(9, 6), 2, priority=1)
    world.hurry(worse)
    world.drain()
    assert world.finished == [*better, worse]


def test_a_tenant_always_in_a_hurry_gains_the_head_start_and_nothing_else() -> None:
    """Two with more than there is to do, one of which hurries every request: what it was served
    more never is more than the head start and what a few requests differ by."""
    random, fair_share = Random(4), FairShare()
    waiting: list[Sequence] = []
    served: Counter[bytes] = Counter()
    leads: list[int] = []
    for _ in range(3000):
        for tenant in (HASTY, CALM):
            # As many wait as it takes for one to be hurried past all of the other's.
            while sum(s.tenant == tenant for s in waiting) < 60:
                sequence = make_sequence([7] * random.randint(1, 300), random.randint(1, 200))
                sequence.tenant = tenant
                fair_share.start(sequence)
                if tenant == HASTY:
                    fair_share.hurry(sequence)
                waiting.append(sequence)
        sequence = min(waiting, key=lambda s: place_of(fair_share, s))
        waiting.remove(sequence)
        fair_share.boarded(sequence)
        sequence.num_served_tokens = random.randint(1, sequence.max_num_tokens)
        fair_share.settle(sequence)
        served[sequence.tenant] += sequence.num_served_tokens
        leads.append(served[HASTY] - served[CALM])
    assert HEAD_START / 2 < max(leads) < HEAD_START + 8000
    assert min(leads[len(leads) // 2 :]) > 0, "it keeps its lead"
    assert served.total() > 40 * HEAD_START


def test_newcomers_don_t_stand_behind_what_was_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with a long queue hurries all of it. When it has had its head start, the clock goes
    by the tags that were put back: who comes then is served at once."""
    monkeypatch.setattr(fair_share_module, "HEAD_START", 400)
    world = one_by_one()
    for sequence in add(world, 150, HASTY):
        world.hurry(sequence)
    calm = add(world, 2, CALM)
    while not all(s in world.finished for s in calm):
        world.step()
    assert 400 / 8 <= len(world.finished) <= 400 / 8 + 5
    for _ in range(40):
        world.step()
    (newcomer,) = add(world, 1, NEWCOMER)
    num_before = len(world.finished)
    while newcomer not in world.finished:
        world.step()
    assert len(world.finished) - num_before <= 2


def test_nobody_is_starved_by_a_tenant_always_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its requests come for each that is served: the others' go after the head start at the
    latest, a token for a token."""
    monkeypatch.setattr(fair_share_module, "HEAD_START", 800)
    world = one_by_one()
    calm = add(world, 20, CALM)
    num_tokens = 0
    while not all(s in world.finished for s in calm):
        for sequence in add(world, 2, HASTY):
            world.hurry(sequence)
        num_tokens += world.step().num_rows
        assert num_tokens < 800 + 3 * 20 * 8
    assert num_tokens > 800 / 2


def test_what_has_begun_or_ended_is_left_where_it_is() -> None:
    """Running, preempted or gone, it has had its place."""
    world = World(num_blocks=64, max_num_seqs=2, max_num_batched_tokens=64)
    running, preempted = add(world, 2)
    world.step()
    world.scheduler._preempt(preempted)
    world.lives[preempted].computed = 0
    for sequence in (running, preempted):
        world.hurry(sequence)
    world.drain()
    world.scheduler.hurry(running)
    assert not world.scheduler.has_work


@settings(max_examples=300, deadline=None)
@given(
    head_start=st.sampled_from([1, 30, HEAD_START]),
    seed=st.integers(0, 1 << 32),
    classes=st.integers(1, 3),
    tenants=st.integers(1, 4),
    hurry_rate=st.floats(0.1, 0.8),
)
def test_random_runs_with_hurry_keep_every_rule(
    head_start: int, seed: int, classes: int, tenants: int, hurry_rate: float
) -> None:
    """The small worlds of the scheduler's tests: order, starvation, blocks, budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_share_module, "HEAD_START", head_start)
        random_run(seed, classes=classes, tenants=tenants, hurry_rate=hurry_rate)
