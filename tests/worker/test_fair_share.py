"""Tenants share the worker by the tokens that they are served."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from chairlift.worker.fair_share import ESTIMATED_OUTPUT, FairShare
from chairlift.worker.scheduler import TOKENS_PER_CLASS
from chairlift.worker.sequence import Sequence
from tests.worker.scheduler_world import World, distinct_prompt, make_sequence, random_run

GREEDY, NEWCOMER = b"greedy", b"newcomer"


def request(num_prompt_tokens: int, max_tokens: int, tenant: bytes = b"") -> Sequence:
    sequence = make_sequence([7] * num_prompt_tokens, max_tokens)
    sequence.tenant = tenant
    return sequence


def serve(fair_share: FairShare, sequence: Sequence, num_tokens: int) -> None:
    """It boards, is served so many tokens, and ends."""
    fair_share.boarded(sequence)
    sequence.num_served_tokens += num_tokens
    fair_share.settle(sequence)


def greedy_world(num_waiting: int) -> World:
    """A tenant that wants more than there is, a while after another was there."""
    world = World(num_blocks=512, max_num_seqs=8, max_num_batched_tokens=64)
    world.add(distinct_prompt(0, 5), 1, tenant=NEWCOMER)
    for number in range(num_waiting):
        world.add(distinct_prompt(1 + number, 9), 40, tenant=GREEDY)
    for _ in range(10):
        world.step()
    return world


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    """Whatever its requests are, and whenever they end."""
    random, fair_share = Random(0), FairShare()
    tags: list[float] = []
    live: list[Sequence] = []
    for _ in range(500):
        sequence = request(random.randint(1, 300), random.randint(1, 500))
        tags.append(fair_share.start(sequence))
        live.append(sequence)
        if len(live) > 5:
            serve(fair_share, live.pop(0), random.randint(0, 800))
    assert tags == sorted(tags)


@pytest.mark.parametrize("seed", range(10))
def test_backlogged_tenants_are_served_a_token_for_a_token(seed: int) -> None:
    """However long their requests are, and however many: one at a time, least tag first, what two
    of them were served differs by no more than a few requests' worth."""
    random, fair_share = Random(seed), FairShare()
    tenants = {bytes([n]): random.randint(1, 400) for n in range(random.randint(2, 5))}
    waiting: list[tuple[float, int, Sequence]] = []
    served: Counter[bytes] = Counter()
    for number in range(6000):
        for tenant, size in tenants.items():
            if sum(s.tenant == tenant for _, _, s in waiting) < 3:
                sequence = request(random.randint(1, size), random.randint(1, size), tenant)
                waiting.append((fair_share.start(sequence), number, sequence))
        waiting.sort(key=lambda one: one[:2])
        _, _, sequence = waiting.pop(0)
        num_tokens = random.randint(1, sequence.max_num_tokens)
        serve(fair_share, sequence, num_tokens)
        served[sequence.tenant] += num_tokens
        assert max(served.values()) - min(served[t] for t in tenants) <= 10 * 800


def test_who_was_idle_comes_with_neither_credit_nor_debt() -> None:
    """Others were served a million tokens meanwhile: the next of each go by turns."""
    fair_share = FairShare()
    fair_share.start(idle := request(10, 10, NEWCOMER))
    serve(fair_share, idle, 20)
    for _ in range(1000):
        fair_share.start(busy := request(900, 100, GREEDY))
        serve(fair_share, busy, 1000)
    tags = [fair_share.start(request(100, 100, t)) for t in (NEWCOMER, GREEDY) * 3]
    assert max(tags[::2]) - min(tags[::2]) == 400
    assert abs(tags[0] - tags[1]) <= 1000


def test_what_is_cancelled_while_it_waits_costs_nothing() -> None:
    """A thousand such do not put a tenant back."""
    fair_share = FairShare()
    before = [request(100, 100, GREEDY) for _ in range(1000)]
    for sequence in before:
        fair_share.start(sequence)
    for sequence in before:
        fair_share.settle(sequence)
    assert fair_share.start(request(100, 100, GREEDY)) == fair_share.start(
        request(100, 100, NEWCOMER)
    )


def test_an_answer_counts_for_what_it_was() -> None:
    """Estimated when it comes, put right when it ends."""
    fair_share = FairShare()
    fair_share.start(short := request(100, 8000, GREEDY))
    late = request(1, 1, GREEDY)
    assert fair_share.start(late) == 100 + ESTIMATED_OUTPUT
    fair_share.settle(late)
    serve(fair_share, short, 101)
    assert fair_share.start(request(1, 1, GREEDY)) == 101


def test_tenants_that_are_gone_are_forgotten() -> None:
    """A name is all that it takes to be one."""
    fair_share = FairShare()
    for number in range(10_000):
        sequence = request(10, 10, number.to_bytes(4, "big"))
        fair_share.start(sequence)
        serve(fair_share, sequence, 20)
    assert len(fair_share._flows) < 200
    assert not fair_share._accounts


def test_ever_new_tenants_do_not_starve_who_waits() -> None:
    """Two of them come for each that is served: the old one's backlog is served nevertheless, at
    the pace of one tenant among 64."""
    world = World(num_blocks=64, max_num_seqs=1, max_num_batched_tokens=64)
    for number in range(20):
        world.add(distinct_prompt(number, 6), 2, tenant=GREEDY)
    for number in range(2000):
        for more in range(2):
            name = (2 * number + more).to_bytes(4, "big")
            world.add([1], 1, tenant=name)
        world.step()
    assert sum(s.tenant == GREEDY for s in world.finished) >= 3


def test_a_newcomer_boards_in_the_next_step_whoever_holds_the_seats() -> None:
    """A hundred wait and as many run as may; one that comes to stay does not wait for them."""
    world = greedy_world(100)
    assert len(world.scheduler.running) == 6
    newcomer = world.add(distinct_prompt(500, 9), 3, tenant=NEWCOMER)
    assert newcomer in {entry.sequence for entry in world.step().entries}
    world.drain()


def test_a_tenant_alone_has_all_seats() -> None:
    """An embedded client, or the only key, pays nothing for others that never come."""
    world = World(num_blocks=512, max_num_seqs=8, max_num_batched_tokens=64)
    for number in range(20):
        world.add(distinct_prompt(number, 3), 40, tenant=GREEDY)
    for _ in range(4):
        world.step()
    assert len(world.scheduler.running) == 8


def test_classes_come_before_shares() -> None:
    """A worse class waits for a better one of any tenant."""
    world = World(num_blocks=64, max_num_seqs=1, max_num_batched_tokens=64)
    for number in range(5):
        world.add(distinct_prompt(number, 6), 2, tenant=GREEDY)
    worse = world.add(distinct_prompt(9, 6), 2, tenant=NEWCOMER, priority=1)
    world.drain()
    assert world.finished[-1] is worse
    assert worse.place[0] >= TOKENS_PER_CLASS


def test_random_runs_with_tenants_keep_every_rule() -> None:
    """The small worlds of the scheduler's tests."""
    for seed in range(400):
        try:
            random_run(seed, tenants=1 + seed % 4, classes=1 + seed % 3)
        except AssertionError as error:
            raise AssertionError(f"random_run({seed}): {error}") from error
