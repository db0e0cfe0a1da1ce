"""The measuring stick: rectangular batches that nobody boards until all members are done."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.scheduler import Plan
from chairlift.worker.sequence import Sequence
from chairlift.worker.static_scheduler import StaticScheduler

BLOCK_SIZE = 4
_numbers = count()


def make_scheduler(num_blocks: int = 64, max_num_seqs: int = 4) -> StaticScheduler:
    manager = BlockManager(num_blocks, BLOCK_SIZE)
    return StaticScheduler(manager, max_num_seqs=max_num_seqs, max_num_batched_tokens=64)


def add(scheduler: StaticScheduler, num_prompt_tokens: int, max_tokens: int) -> Sequence:
    number = next(_numbers)
    prompt = [1000 * (number + 1) + i for i in range(num_prompt_tokens)]
    params = SamplingParams(max_tokens=max_tokens)
    sequence = Sequence(number.to_bytes(16, "big"), prompt, params)
    scheduler.add(sequence)
    return sequence


def step(scheduler: StaticScheduler) -> Plan:
    plan = scheduler.plan()
    members = list(scheduler.running)
    assert plan.sampled == members, "no chunks: every member gets a token in every step"
    scheduler.advance(plan)
    scheduler.land(plan)
    for sequence in members:
        sequence.append(1)
        if sequence.num_output_tokens == sequence.params.max_tokens:
            sequence.finish = Finish("length")
            scheduler.remove(sequence)
    return plan


def test_prompts_are_padded_to_the_longest_member() -> None:
    """The first step computes every prompt whole and pads the shorter ones to the longest."""
    scheduler = make_scheduler()
    for num_prompt_tokens in (3, 20, 7):
        add(scheduler, num_prompt_tokens, 2)
    plan = step(scheduler)
    assert [entry.num_tokens for entry in plan.entries] == [3, 20, 7]
    assert plan.num_padding_tokens == (20 - 3) + (20 - 7)


def test_finished_members_keep_their_rows() -> None:
    """Until the last member is done, a step has as many rows as there were members."""
    scheduler = make_scheduler()
    for max_tokens in (1, 3, 2):
        add(scheduler, 5, max_tokens)
    rows = []
    while scheduler.has_work:
        plan = step(scheduler)
        rows.append((len(plan.sampled), len(plan.entries)))
    assert rows == [(3, 3), (2, 3), (1, 3)]


def test_ghosts_grow_with_the_batch() -> None:
    """A finished member's row takes a token a step like the others, and its answer none."""
    scheduler = make_scheduler()
    first, second = add(scheduler, 5, 1), add(scheduler, 5, 9)
    num_blocks = []
    while scheduler.has_work:
        plan = step(scheduler)
        num_blocks.append({len(entry.sequence.block_table) for entry in plan.entries})
    assert first.num_tokens == 6
    assert second.num_tokens == 14
    assert num_blocks[-2] == {3}  # both rows


def test_no_row_goes_beyond_the_longest_member() -> None:
    """A long prompt's row stays where it is, rather than at positions that the model hasn't."""
    scheduler = make_scheduler()
    add(scheduler, 20, 2)
    add(scheduler, 2, 25)
    while scheduler.has_work:
        plan = scheduler.plan()
        for entry in plan.entries:
            assert entry.sequence.num_computed_tokens + entry.num_tokens <= 2 + 25
            assert entry.num_tokens == entry.sequence.num_uncomputed_tokens
        scheduler.advance(plan)
        scheduler.land(plan)
        for sequence in list(scheduler.running):
            sequence.append(1)
            if sequence.num_output_tokens == sequence.params.max_tokens:
                sequence.finish = Finish("length")
                scheduler.remove(sequence)


def test_cancelled_member_keeps_its_row() -> None:
    """A row and its blocks are free when all members are done."""
    scheduler = make_scheduler()
    first, second = add(scheduler, 5, 5), add(scheduler, 5, 5)
    step(scheduler)
    scheduler.remove(first)
    plan = step(scheduler)
    assert plan.sampled == [second]
    assert len(plan.entries) == 2
    scheduler.remove(second)
    assert scheduler.block_manager.num_free_blocks == scheduler.block_manager.num_blocks


def test_nobody_boards_until_all_are_done() -> None:
    """An arrival waits for the whole batch, then the next batch is as large as it may be."""
    scheduler = make_scheduler(max_num_seqs=2)
    first, second = add(scheduler, 5, 1), add(scheduler, 5, 3)
    late = [add(scheduler, 5, 2) for _ in range(3)]
    members = []
    while scheduler.has_work:
        plan = step(scheduler)
        members.append(plan.sampled)
    assert members == [[first, second], [second], [second], late[:2], late[:2], late[2:], late[2:]]


def test_members_are_as_many_as_fit_at_their_longest() -> None:
    """Blocks are counted for the longest outputs, so that no member ever lacks one."""
    scheduler = make_scheduler(num_blocks=12)
    sequences = [add(scheduler, 3, 16) for _ in range(4)]  # 5 blocks each at its longest
    plan = step(scheduler)
    assert plan.sampled == sequences[:2]


def test_one_that_fills_the_cache_boards_alone() -> None:
    """A request of exactly the cache's size is its own batch."""
    scheduler = make_scheduler(num_blocks=4)
    whole, other = add(scheduler, 10, 6), add(scheduler, 2, 2)
    sizes = []
    while scheduler.has_work:
        sizes.append(len(step(scheduler).entries))
    assert sizes == [1] * 6 + [1] * 2
    assert (whole.num_output_tokens, other.num_output_tokens) == (6, 2)


def test_plan_without_work_is_empty() -> None:
    """Neither rows nor padding when there is nobody."""
    scheduler = make_scheduler()
    assert (scheduler.plan().entries, scheduler.plan().num_padding_tokens) == ((), 0)
    add(scheduler, 3, 1)
    step(scheduler)
    assert (scheduler.plan().entries, scheduler.plan().num_padding_tokens) == ((), 0)


@pytest.mark.parametrize("seed", range(100))
def test_random_batches_finish_without_preemption(seed: int) -> None:
    """Random arrivals and cancels in small caches: all finish, nothing leaks."""
    random = Random(seed)
    num_blocks = random.randint(4, 16)
    scheduler = make_scheduler(num_blocks, max_num_seqs=random.randint(1, 6))
    sequences = []
    for _ in range(30):
        if random.random() < 0.4:
            max_tokens = random.randint(1, 10)
            longest = min(20, num_blocks * BLOCK_SIZE - max_tokens)
            sequences.append(add(scheduler, random.randint(1, longest), max_tokens))
        if sequences and random.random() < 0.1:
            scheduler.remove(random.choice(sequences))
        step(scheduler)
    while scheduler.has_work:
        assert step(scheduler).entries
    assert scheduler.num_preemptions == 0
    assert scheduler.block_manager.num_free_blocks == num_blocks
