"""Continuous batching under random arrivals, cancels, failures, suspects and shortage, with a
simulated model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from chairlift.worker.sequence import Sequence, Status
from tests.worker.scheduler_world import (
    BLOCK_SIZE,
    World,
    distinct_prompt,
    make_sequence,
    random_run,
)


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for the shortest history that breaks a rule of the world."""

    @initialize(
        num_blocks=st.integers(4, 14),
        max_num_seqs=st.integers(1, 5),
        spare_budget=st.integers(BLOCK_SIZE, 24),
        has_prefix_cache=st.booleans(),
    )
    def start(
        self, num_blocks: int, max_num_seqs: int, spare_budget: int, has_prefix_cache: bool
    ) -> None:
        budget = max_num_seqs + spare_budget
        self.world = World(num_blocks, max_num_seqs, budget, has_prefix_cache)

    @rule(
        first=st.integers(0, 2),
        num_prompt_tokens=st.integers(1, 40),
        max_tokens=st.integers(1, 24),
        is_suspect=st.sampled_from([False, False, True]),
        priority=st.sampled_from([0, 0, 1, -1]),
    )
    def add(
        self, first: int, num_prompt_tokens: int, max_tokens: int, is_suspect: bool, priority: int
    ) -> None:
        num_prompt_tokens = min(num_prompt_tokens, self.world.capacity - max_tokens)
        if num_prompt_tokens > 0:
            prompt = num_prompt_tokens * [first]
            self.world.add(prompt, max_tokens, is_suspect=is_suspect, priority=priority)

    @precondition(lambda self: self.world.lives)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from(list(self.world.lives))))

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.world.step()

    @precondition(lambda self: self.world.lives)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A step in which some can't be computed."""
        doomed = data.draw(st.sets(st.sampled_from(list(self.world.lives))))
        self.world.step(fails=doomed.__contains__)

    @invariant()
    def everybody_is_somewhere(self) -> None:
        if hasattr(self, "world"):
            self.world.check_places()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=20)


@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_random_runs_keep_every_rule(start: int) -> None:
    """Thousands of small worlds with scarce blocks: no rule is broken, and preemption happens."""
    num_preemptions = num_lone_steps = num_passes = 0
    for seed in range(start, start + 500):
        try:
            world = random_run(seed)
        except AssertionError as error:
            raise AssertionError(f"random_run({seed}): {error}") from error
        num_preemptions += world.scheduler.num_preemptions
        num_lone_steps += world.num_lone_steps
        num_passes += world.num_passes
    assert num_passes > 20
    assert num_preemptions > 500
    assert num_lone_steps > 500


def test_long_prompt_does_not_hold_up_decodes() -> None:
    """While a long prompt is read in chunks, a running sequence gets a token in every step."""
    world = World(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=12)
    short = world.add(distinct_prompt(0, 3), 40)
    world.step()
    long = world.add(distinct_prompt(1, 100), 4)
    num_chunks = 0
    while long.num_output_tokens == 0:
        num_outputs = short.num_output_tokens
        plan = world.step()
        num_chunks += 1
        assert short.num_output_tokens == num_outputs + 1
        assert plan.num_rows <= 12
    assert num_chunks == 13  # of 8 tokens: whole blocks within what the decode leaves of 12
    world.drain()


def test_prompts_share_a_step() -> None:
    """What one prompt leaves of the budget goes to the next, in order of arrival."""
    world = World(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=20)
    prompts = [world.add(distinct_prompt(n, 9), 2) for n in range(3)]
    plan = world.step()
    assert [(e.sequence, e.num_tokens) for e in plan.entries] == [(prompts[0], 9), (prompts[1], 9)]
    assert prompts[2].num_computed_tokens == 0
    plan = world.step()
    assert [e.num_tokens for e in plan.entries] == [1, 1, 9]


def test_preempted_sequence_resumes_from_its_own_cached_blocks() -> None:
    """The newest gives way, keeps its tokens, and computes again only what was overwritten."""
    world = World(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=64)
    old = world.add(distinct_prompt(0, 13), 14)
    new = world.add(distinct_prompt(1, 9), 12)
    while world.scheduler.num_preemptions == 0:
        world.step()
    tokens = list(new.token_ids)
    assert new.status is Status.WAITING
    assert (new.num_computed_tokens, new.is_protected) == (0, True)
    assert old.status is Status.RUNNING
    while new.status is Status.WAITING:
        world.step()
    assert new.token_ids[: len(tokens)] == tokens
    assert new.num_cached_tokens == 0, "its own work is no prefix hit of the request"
    world.drain()
    assert (old.num_output_tokens, new.num_output_tokens) == (14, 12)


def test_resumption_reuses_the_blocks_that_are_left() -> None:
    """When room comes back soon, a preempted sequence finds its finished blocks again."""
    world = World(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=64)
    old = world.add(distinct_prompt(0, 13), 14)
    new = world.add(distinct_prompt(1, 9), 12)
    while world.scheduler.num_preemptions == 0:
        world.step()
    world.cancel(old)
    num_hits = world.manager.num_prefix_hits
    world.step()
    assert new.status is Status.RUNNING
    assert world.manager.num_prefix_hits - num_hits >= 8
    world.drain()


def test_cached_prefix_is_counted_once_for_the_request() -> None:
    """`num_cached_tokens` is what the cache saved at the first admission, of the prompt alone."""
    world = World(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=64)
    world.add(distinct_prompt(0, 9), 1)
    world.step()
    again = world.add(distinct_prompt(0, 12), 2)
    world.step()
    assert again.num_cached_tokens == 8
    resumed = make_sequence(distinct_prompt(0, 5), 8)
    for token in distinct_prompt(0, 9)[5:]:
        resumed.append(token)
    world.scheduler.add(resumed)
    world.scheduler.plan()
    assert resumed.num_computed_tokens == 8
    assert resumed.num_cached_tokens == 5


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_cancel_in_the_middle_of_a_prompt_frees_everything(num_steps: int) -> None:
    """Waiting, half read or running: after a cancel its blocks are free and it is nowhere."""
    world = World(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=24)
    sequence = world.add(distinct_prompt(0, 40), 4)
    for _ in range(num_steps):
        world.step()
    assert sequence.num_computed_tokens == min(24 * num_steps, 40)
    world.cancel(sequence)
    assert world.manager.num_free_blocks == 16
    assert not world.scheduler.has_work
    assert not world.scheduler.plan().entries
    world.scheduler.remove(sequence)  # once more: nothing
    assert sequence.status is Status.FINISHED


def test_no_thrash_when_the_cache_holds_two_of_sixty_four() -> None:
    """Cache for two of the longest, 64 long requests: all finish, none preempted over 4 times."""
    longest = 32 * BLOCK_SIZE
    world = World(num_blocks=64, max_num_seqs=64, max_num_batched_tokens=128)
    sequences = [world.add(distinct_prompt(n, longest // 2), longest // 2) for n in range(64)]
    counts: Counter[Sequence] = Counter()
    while world.scheduler.has_work:
        world.step()
        for sequence, life in world.lives.items():
            counts[sequence] = life.num_preemptions
    assert max(counts.values()) <= 4
    assert counts[sequences[0]] == 0


def test_oldest_waits_while_those_that_gave_way_once_catch_up() -> None:
    """When all blocks are with sequences that were preempted and have no new token yet, the
    oldest sits out a step instead of preempting them again or giving way itself."""
    world = World(num_blocks=19, max_num_seqs=3, max_num_batched_tokens=7, has_prefix_cache=False)
    sizes = [(3, 11), (9, 28), (46, 12), (1, 6), (13, 14)]
    sequences = [world.add(distinct_prompt(n, size[0]), size[1]) for n, size in enumerate(sizes)]
    world.drain()
    assert world.num_waits > 0
    assert [(s.num_prompt_tokens, s.num_output_tokens) for s in sequences] == sizes


def test_a_full_cache_is_used_to_its_last_block() -> None:
    """A request of exactly the cache's size runs, alone, while others wait for it."""
    world = World(num_blocks=6, max_num_seqs=4, max_num_batched_tokens=16)
    whole = world.add(distinct_prompt(0, 20), 4)
    other = world.add(distinct_prompt(1, 3), 3)
    world.drain()
    assert (whole.num_output_tokens, other.num_output_tokens) == (4, 3)
